//! Client certificates of callers: verified by the TLS library, once their chains are known to be bounded.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::check_chain;

/// Takes clients without a certificate, and those whose certificate leads to one of the roots.
#[derive(Debug)]
pub(super) struct Clients(Arc<dyn ClientCertVerifier>);

impl Clients {
    pub(super) fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map(Self)
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_chain(end_entity, intermediates)
            .map_err(|fault| CertificateError::Other(OtherError(Arc::new(fault))))?;
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use rustls::crypto::aws_lc_rs;

    use super::*;
    use crate::identity::testing::TestCa;

    #[test]
    fn a_chain_too_long_is_refused_unread() {
        let (ca, now) = (TestCa::new("ca"), SystemTime::now());
        let hour = Duration::from_secs(3600);
        let (leaf, _) = ca.leaf(&["spiffe://td1/ns/shop/sa/web"], now - hour, now + hour, |_| ());
        let clients =
            Clients::new(ca.trust().anchors().unwrap(), Arc::new(aws_lc_rs::default_provider())).unwrap();
        for (others, good) in [(0, true), (5, true), (6, false)] {
            let others = vec![ca.certificate.clone(); others];
            let verified = clients.verify_client_cert(&leaf, &others, UnixTime::now());
            assert_eq!(verified.is_ok(), good, "{} others: {:?}", others.len(), verified.err());
        }
    }
}
