//! The roots that this node's identities trust, as an operator wants to see them.

use std::{collections::HashMap, time::SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;

use super::{
    IdentityStatus,
    certificate::{bounded, parse, system_time},
};

/// What an operator wants to know of a root of the identities' trust bundles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// Its own name.
    pub(crate) subject: String,
    /// SHA-256 of its DER, lower-case hexadecimal.
    pub(crate) fingerprint: String,
    /// First moment of validity.
    pub(crate) not_before: SystemTime,
    /// Last moment of validity.
    pub(crate) not_after: SystemTime,
    /// How many identities trust it.
    pub(crate) identities: usize,
    /// How many of their certificates lead to it.
    pub(crate) certificates: usize,
    /// DER.
    pub(crate) der: CertificateDer<'static>,
}

/// The roots that `identities` trust, in the order of their ends.
pub(crate) fn roots(identities: &[IdentityStatus]) -> Vec<Root> {
    let mut trusted: HashMap<&CertificateDer<'static>, usize> = HashMap::new();
    for root in
        identities.iter().filter_map(|identity| identity.svid.as_ref()).flat_map(|svid| &svid.trust.roots)
    {
        *trusted.entry(root).or_default() += 1;
    }
    let mut leading: HashMap<&CertificateDer<'static>, usize> = HashMap::new();
    for root in identities.iter().filter_map(|identity| identity.svid.as_ref()?.anchor.as_ref()) {
        *leading.entry(root).or_default() += 1;
    }
    let mut roots: Vec<Root> = trusted
        .into_iter()
        .filter_map(|(der, identities)| {
            let certificate = parse(der).ok()?;
            let fingerprint = digest(&SHA256, der);
            Some(Root {
                subject: bounded(certificate.subject()),
                fingerprint: HEXLOWER.encode(fingerprint.as_ref()),
                not_before: system_time(certificate.validity().not_before),
                not_after: system_time(certificate.validity().not_after),
                identities,
                certificates: leading.get(der).copied().unwrap_or_default(),
                der: der.clone(),
            })
        })
        .collect();
    roots.sort_by(|a, b| (a.not_after, &a.fingerprint).cmp(&(b.not_after, &b.fingerprint)));
    roots
}
