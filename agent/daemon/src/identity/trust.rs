//! Trust bundles: the roots that a workload trusts.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ambit_core::model::TrustDomain;
use rustls::{
    RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::aws_lc_rs,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::pem;

/// The bundles of other trust domains.
pub(crate) type Foreign = Arc<HashMap<TrustDomain, TrustBundle>>;

/// The roots that a workload trusts; several while they rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustBundle {
    /// Self-signed certificates, DER.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// The certificates in a PEM text, at least one; the error says what is wrong with it.
    pub(super) fn from_pem(text: &[u8]) -> Result<Self, String> {
        Ok(Self { roots: pem::certificates(text)? })
    }

    /// The roots in the form that rustls verifies chains with.
    pub(crate) fn anchors(&self) -> Result<RootCertStore, rustls::Error> {
        let mut anchors = RootCertStore::empty();
        for root in &self.roots {
            anchors.add(root.clone())?;
        }
        Ok(anchors)
    }

    /// Whether peers with this bundle would believe `chain` at `at`; the error says why not.
    pub(super) fn verify(&self, chain: &[CertificateDer<'static>], at: SystemTime) -> Result<(), String> {
        let anchors = self.anchors().map_err(|error| format!("a root of its trust bundle: {error}"))?;
        let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
        ParsedCertificate::try_from(&chain[0])
            .and_then(|leaf| {
                verify_server_cert_signed_by_trust_anchor(&leaf, &anchors, &chain[1..], at, algorithms)
            })
            .map_err(|error| {
                let roots = match self.roots.len() {
                    1 => "the root that its issuer publishes".to_owned(),
                    count => format!("any of the {count} roots that its issuer publishes"),
                };
                format!("the certificate does not lead to {roots}: {error}")
            })
    }

    /// The root that a chain leads to which this bundle believes at `at`; the first one, if there are several such.
    pub(super) fn anchor_of(
        &self,
        chain: &[CertificateDer<'static>],
        at: SystemTime,
    ) -> Option<CertificateDer<'static>> {
        if let [only] = &*self.roots {
            return Some(only.clone());
        }
        let leads = |root: &&CertificateDer<'static>| {
            let alone = Self { roots: vec![(*root).clone()] };
            alone.verify(chain, at).is_ok()
        };
        self.roots.iter().find(leads).cloned()
    }
}
