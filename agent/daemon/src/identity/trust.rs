//! Trust bundles: the roots that a workload trusts.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{
    RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::aws_lc_rs,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::pem;

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
            .map_err(|error| format!("the certificate does not verify against its own trust bundle: {error}"))
    }
}
