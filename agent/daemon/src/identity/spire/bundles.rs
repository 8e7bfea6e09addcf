//! The subscription to bundles: the roots of our own trust domain, and of those that SPIRE federates with.

use std::{collections::HashMap, mem, sync::Arc};

use ambit_core::model::TrustDomain;
use ambit_proto::spire::delegatedidentity::{SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::Status;
use tracing::warn;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{FIRST_PAUSE, LAST_BUNDLES_PAUSE, Shared};
use crate::identity::{Foreign, TrustBundle};

/// Trust domains of others that are taken.
const MAX_FOREIGN: usize = 64;

/// Follows them for ever.
pub(super) async fn follow(shared: Arc<Shared>, trust_domain: TrustDomain) {
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        let ended = match shared.client().subscribe_to_x509_bundles(SubscribeToX509BundlesRequest {}).await {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                let mut first = true;
                loop {
                    match answers.message().await {
                        Ok(Some(answer)) => {
                            (pause, told) = (FIRST_PAUSE, None);
                            take(&shared, &trust_domain, &answer);
                            if mem::take(&mut first) {
                                shared.answered.send_modify(|count| *count += 1);
                            }
                        }
                        Ok(None) => break Status::unavailable("the SPIRE agent ended the subscription"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        let trouble = shared.way.trouble(&ended);
        if told.as_deref() != Some(trouble.text()) {
            warn!(error = trouble.text(), "no trust bundles from SPIRE; subscribing again");
            told = Some(trouble.text().to_owned());
        }
        shared.rest(pause).await;
        pause = (pause * 2).min(LAST_BUNDLES_PAUSE);
    }
}

/// An answer without our bundle, or with one that cannot be read, changes nothing of it. Others' bundles that cannot be read
/// stay as they were; those that are not there any more go.
fn take(shared: &Shared, trust_domain: &TrustDomain, answer: &SubscribeToX509BundlesResponse) {
    let mut foreign = HashMap::new();
    let mut own = None;
    for (name, der) in &answer.ca_certificates {
        let name = name.strip_prefix("spiffe://").unwrap_or(name);
        let Ok(domain) = name.parse::<TrustDomain>() else {
            warn!(name, "SPIRE gave a bundle of a trust domain that cannot be one");
            continue;
        };
        let bundle = usable(der).map(|roots| TrustBundle { roots });
        if domain == *trust_domain {
            own = bundle;
        } else if let Some(bundle) = bundle.or_else(|| shared.foreign.borrow().get(&domain).cloned()) {
            foreign.insert(domain, bundle);
        } else {
            warn!(%domain, "SPIRE gave a bundle of a federated trust domain that cannot be used");
        }
    }
    match own {
        Some(bundle) => publish(&shared.trust, Arc::new(bundle)),
        None => warn!(%trust_domain, "SPIRE gave no usable bundle of our trust domain"),
    }
    if foreign.len() > MAX_FOREIGN {
        warn!(
            domains = foreign.len(),
            "SPIRE federates with more trust domains than are taken; those taken before stay"
        );
    } else {
        publish(&shared.foreign, Arc::new(foreign) as Foreign);
    }
}

fn publish<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|now| {
        let differs = *now != value;
        if differs {
            *now = value;
        }
        differs
    });
}

fn usable(der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let roots = certificates(der).filter(|roots| !roots.is_empty())?;
    let bundle = TrustBundle { roots };
    bundle.anchors().is_ok().then_some(bundle.roots)
}

/// Certificates one behind another; `None` if one cannot be read.
fn certificates(mut der: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).ok()?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Some(found)
}
