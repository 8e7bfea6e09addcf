//! What ambit reads out of an X.509 certificate: the workload identity, the validity, the serial, the public key.
//!
//! Input may come from a peer: every failure is a value, texts are bounded. Leaves signatures and chains to rustls.

use std::time::{Duration, SystemTime};

use ambit_core::model::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time, x509::X509Name,
};

/// A certificate larger than this is not looked at.
const MAX_CERTIFICATE: usize = 16 * 1024;
/// Certificates that a chain may have, its leaf included. Those above the leaf are tried in every order, so that each one more
/// multiplies the work that a stranger can ask for.
pub(super) const MAX_CHAIN: usize = 6;

/// The parts of a workload certificate that decide who it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The one URI SAN.
    pub id: SpiffeId,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// DER of the SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

/// The name of who signed a certificate; empty if it cannot be read.
pub fn issuer_name(der: &[u8]) -> String {
    parse(der).map(|certificate| bounded(certificate.issuer())).unwrap_or_default()
}

pub(super) fn bounded(name: &X509Name<'_>) -> String {
    name.to_string().chars().take(256).collect()
}

/// Why a certificate names no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not exactly one URI SAN (X509-SVID specification, section 2), or one that is no workload identity.
    #[error("{0}")]
    Identity(String),
    /// More, or larger, certificates than are looked at.
    #[error("{0}")]
    Chain(String),
}

impl Leaf {
    /// Reads one DER certificate: exactly one URI SAN, and that a workload identity; other kinds of SAN are allowed.
    pub fn read(der: &[u8]) -> Result<Self, Fault> {
        let certificate = parse(der)?;
        Ok(Self {
            id: workload_identity(&certificate)?,
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            serial: serial(&certificate),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// Whether what was sent beside a leaf is little enough to be searched for a path to a root. To be asked before that.
pub(crate) fn check_chain(leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Fault> {
    let count = 1 + others.len();
    if count > MAX_CHAIN {
        return Err(Fault::Chain(format!("a chain of {count} certificates (at most {MAX_CHAIN})")));
    }
    match std::iter::once(leaf).chain(others).map(|der| der.len()).find(|len| *len > MAX_CERTIFICATE) {
        Some(len) => Err(Fault::Chain(format!("a certificate of {len} bytes (at most {MAX_CERTIFICATE})"))),
        None => Ok(()),
    }
}

/// Parses one DER certificate with nothing behind it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Fault> {
    if der.len() > MAX_CERTIFICATE {
        return Err(Fault::Unreadable(format!("{} bytes are too many", der.len())));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(Fault::Unreadable(format!("{} bytes behind its end", rest.len()))),
        Err(error) => Err(Fault::Unreadable(error.to_string().chars().take(256).collect())),
    }
}

/// The URIs among the subject alternative names, unreadable ones included as an error.
pub(super) fn uri_names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Fault> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Fault::Unreadable("its subject alternative names are malformed".into()))?;
    let mut uris = Vec::new();
    for name in names.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => {
                return Err(Fault::Unreadable("one of its subject alternative names is malformed".into()));
            }
            _ => {}
        }
    }
    Ok(uris)
}

/// Converts a certificate's time. What lies before 1970 becomes 1970, which as an end of validity means expired.
pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn workload_identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Fault> {
    match uri_names(certificate)?.as_slice() {
        [] => Err(Fault::Identity("the certificate has no URI SAN, so it names no workload".into())),
        [uri] => uri.parse().map_err(|error| {
            Fault::Identity(format!("the URI SAN of the certificate is no workload identity: {error}"))
        }),
        several => Err(Fault::Identity(format!(
            "the certificate has {} URI SANs, exactly one is allowed",
            several.len()
        ))),
    }
}

/// The serial number, lower-case hexadecimal.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    certificate.raw_serial().iter().take(32).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
