//! TLS to servers outside the mesh, as a client that an operator has told what to demand and what to show.
//!
//! Promises that a server is believed only by the roots given, and only under one of the names given, unless nothing is to be
//! verified at all; TLS 1.2 and 1.3. Leaves files and Secrets to others.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use ambit_core::reason::Reason;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    server::ParsedCertificate,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject},
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::{reason::handshake_reason, revocation::Revocations, verify::Refusal};

/// What is demanded of a server and shown to it. Bytes are PEM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutsideTls<'a> {
    /// The name that is sent, if it is one that DNS has.
    pub(crate) server_name: &'a str,
    /// Names of which the server's certificate must have one: of DNS, addresses, or URIs.
    pub(crate) names: &'a [Arc<str>],
    /// What the server's certificate must lead to; the roots of the machine if `None`.
    pub(crate) roots: Option<&'a [u8]>,
    /// The client's certificate chain and its key.
    pub(crate) client: Option<(&'a [u8], &'a [u8])>,
    /// Revocation lists.
    pub(crate) revoked: Option<&'a [u8]>,
    /// Nothing of the server is verified.
    pub(crate) unverified: bool,
    /// The application protocol that is asked for.
    pub(crate) alpn: Option<&'a str>,
}

/// A way to connect, made once and used for many connections.
#[derive(Clone)]
pub(crate) struct Outside {
    pub(in crate::tunnel) config: Arc<ClientConfig>,
    pub(in crate::tunnel) name: ServerName<'static>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why what was told cannot be used, as the end of a sentence.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutsideError {
    /// A bundle of roots.
    #[error("the CA certificates cannot be used: {0}")]
    Roots(String),
    /// The client's own.
    #[error("the client certificate or its key cannot be used: {0}")]
    Client(String),
    /// A bundle of revocation lists.
    #[error("the revocation lists cannot be used: {0}")]
    Revoked(String),
    /// A name that no certificate can have.
    #[error("{0:?} is no name that a server's certificate can have")]
    Name(String),
    /// The TLS library.
    #[error("TLS cannot be set up: {0}")]
    Library(Error),
}

impl Outside {
    pub(crate) fn new(tls: &OutsideTls<'_>) -> Result<Self, OutsideError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let name = ServerName::try_from(tls.server_name.to_owned())
            .map_err(|_| OutsideError::Name(tls.server_name.to_owned()))?;
        let verifier = verifier(tls, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(OutsideError::Library)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match tls.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let unusable = |error: pem::Error| OutsideError::Client(error.to_string());
                let chain = certificates(certificate).map_err(unusable)?;
                if chain.is_empty() {
                    return Err(OutsideError::Client("there is no certificate in it".into()));
                }
                let key = PrivateKeyDer::from_pem_slice(key).map_err(unusable)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| OutsideError::Client(error.to_string()))?
            }
        };
        config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Self { config: Arc::new(config), name })
    }
}

/// The reason for a handshake with a server outside that failed, and one sentence for an operator.
pub(in crate::tunnel) fn outside_reason(error: &Error) -> (Reason, String) {
    match error {
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => (
            Reason::TlsHandshake,
            format!("the server does not answer in TLS ({error}): it may speak plaintext on this port"),
        ),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (Reason::IdentityMismatch, format!("the server's certificate is for other names: {error}")),
        Error::NoApplicationProtocol => (
            Reason::TlsHandshake,
            "the server does not speak the application protocol of the port (ALPN)".into(),
        ),
        Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            (Reason::TlsHandshake, "the server speaks neither TLS 1.2 nor TLS 1.3".into())
        }
        error => {
            let (reason, text) = handshake_reason(error);
            (reason, text.replace("the peer", "the server"))
        }
    }
}

fn verifier(
    tls: &OutsideTls<'_>,
    provider: &CryptoProvider,
) -> Result<Arc<dyn ServerCertVerifier>, OutsideError> {
    let algorithms = provider.signature_verification_algorithms;
    if tls.unverified {
        return Ok(Arc::new(Verifier { believed: None, algorithms }));
    }
    let roots = match tls.roots {
        None => crate::web_pki::roots(),
        Some(bundle) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(bundle).map_err(|error| OutsideError::Roots(error.to_string()))? {
                roots.add(root).map_err(|error| OutsideError::Roots(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(OutsideError::Roots("there is no certificate in it".into()));
            }
            Arc::new(roots)
        }
    };
    let revocations = match tls.revoked {
        None => Revocations::default(),
        Some(lists) => Revocations::parse(lists).map_err(|error| OutsideError::Revoked(error.to_string()))?,
    };
    let names = tls.names.iter().map(|name| Name::read(name)).collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Verifier { believed: Some(Believed { roots, names, revocations }), algorithms }))
}

fn certificates(bundle: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(bundle).collect()
}

/// A name that a certificate may have.
#[derive(Debug)]
enum Name {
    /// Of DNS, which a wildcard in the certificate may stand for, or an address.
    Server(ServerName<'static>),
    /// A URI, such as a SPIFFE ID.
    Uri(Box<str>),
}

impl Name {
    fn read(text: &str) -> Result<Self, OutsideError> {
        if text.contains("://") {
            return Ok(Self::Uri(text.into()));
        }
        let name = ServerName::try_from(text.to_owned());
        name.map(Self::Server).map_err(|_| OutsideError::Name(text.to_owned()))
    }

    fn is_in(&self, certificate: &ParsedCertificate<'_>, der: &[u8]) -> bool {
        match self {
            Self::Server(name) => verify_server_name(certificate, name).is_ok(),
            Self::Uri(uri) => uris(der).iter().any(|own| **own == **uri),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(&name.to_str()),
            Self::Uri(uri) => f.write_str(uri),
        }
    }
}

/// The URIs among a certificate's names.
fn uris(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::certificate::X509Certificate::from_der(der) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

#[derive(Debug)]
struct Verifier {
    /// Nothing where any server is believed.
    believed: Option<Believed>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Believed {
    roots: Arc<RootCertStore>,
    names: Vec<Name>,
    revocations: Revocations,
}

impl Verifier {
    fn verify(
        &self,
        believed: &Believed,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let Believed { roots, names, revocations } = believed;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)
            .map_err(|error| match error {
                Error::InvalidCertificate(CertificateError::BadSignature) => {
                    CertificateError::UnknownIssuer.into()
                }
                error => error,
            })?;
        if !names.iter().any(|name| name.is_in(&parsed, end_entity)) {
            let wanted: Vec<String> = names.iter().map(ToString::to_string).collect();
            let text = format!("the server's certificate has none of the names {}", wanted.join(", "));
            return Err(Refusal { reason: Reason::IdentityMismatch, text }.into());
        }
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        revocations.check(&chain, roots, UNIX_EPOCH + Duration::from_secs(now.as_secs()))?;
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(believed) = &self.believed {
            self.verify(believed, end_entity, intermediates, now)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
