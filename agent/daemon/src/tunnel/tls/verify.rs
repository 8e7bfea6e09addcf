//! Who may be on the other side: chain first, then exactly one workload identity.
//!
//! Every refusal carries our own reason inside rustls' error. Leaves chains and signatures to rustls.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::{model::TrustDomain, reason::Reason};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{Expected, federation::Anchors, revocation::Revocations};
use crate::identity::{Fault, Leaf, check_chain};

/// Verifies a server: chain, use as server, and that it is the workload expected at that address.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) anchors: Arc<Anchors>,
    pub(super) revocations: Arc<Revocations>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    pub(super) expected: Expected,
}

/// Verifies a client: chain, use as client, and that it is a workload of our trust domains.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    /// By our own roots.
    own: Arc<dyn ClientCertVerifier>,
    /// By those of each foreign trust domain.
    foreign: HashMap<TrustDomain, Arc<dyn ClientCertVerifier>>,
    anchors: Arc<Anchors>,
    revocations: Arc<Revocations>,
}

/// A refusal of ours, as it travels inside [`CertificateError::Other`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// One sentence for an operator.
    pub(super) text: String,
}

/// Whether the certificate is for a workload of our trust domains, and for one that is `expected` where somebody is.
pub(super) fn check_identity(
    leaf: &Leaf,
    expected: Option<&Expected>,
    accepted: impl Fn(&TrustDomain) -> bool,
) -> Result<(), Refusal> {
    if !accepted(leaf.id.trust_domain()) {
        let text = format!("the peer is {}, whose trust domain is not one of ours", leaf.id);
        return Err(Refusal { reason: Reason::TrustDomain, text });
    }
    match expected {
        Some(expected) if !expected.includes(&leaf.id) => {
            let text = format!("the peer is {}, expected was {expected}", leaf.id);
            Err(Refusal { reason: Reason::IdentityMismatch, text })
        }
        _ => Ok(()),
    }
}

/// Whether the certificate is valid at `now`, both ends included.
pub(super) fn check_validity(leaf: &Leaf, now: SystemTime) -> Result<(), Refusal> {
    if let Ok(over) = now.duration_since(leaf.not_after)
        && !over.is_zero()
    {
        let text = format!("the certificate of {} expired {} s ago", leaf.id, over.as_secs());
        return Err(Refusal { reason: Reason::CertificateExpired, text });
    }
    if let Ok(ahead) = leaf.not_before.duration_since(now)
        && !ahead.is_zero()
    {
        let text = format!("the certificate of {} becomes valid only in {} s", leaf.id, ahead.as_secs());
        return Err(Refusal { reason: Reason::CertificateNotYetValid, text });
    }
    Ok(())
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_chain(end_entity, intermediates).map_err(Refusal::from)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let leaf = Leaf::read(end_entity);
        let roots = self.anchors.of(&leaf);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)
            .map_err(chain_error)?;
        let leaf = leaf.map_err(Refusal::from)?;
        check_identity(&leaf, Some(&self.expected), |domain| self.anchors.accept(domain))?;
        check_revocation(&self.revocations, roots, end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
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

impl ClientVerifier {
    pub(super) fn new(
        anchors: &Arc<Anchors>,
        revocations: &Arc<Revocations>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let by = |roots: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
                .clear_root_hint_subjects()
                .build()
        };
        let foreign = anchors.federation.iter().map(|(domain, roots)| Ok((domain.clone(), by(roots)?)));
        Ok(Self {
            own: by(&anchors.own)?,
            foreign: foreign.collect::<Result<_, VerifierBuilderError>>()?,
            anchors: anchors.clone(),
            revocations: revocations.clone(),
        })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.own.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_chain(end_entity, intermediates).map_err(Refusal::from)?;
        let leaf = Leaf::read(end_entity);
        let foreign = leaf.as_ref().ok().and_then(|leaf| self.foreign.get(leaf.id.trust_domain()));
        let chain = foreign.unwrap_or(&self.own);
        let verified = chain.verify_client_cert(end_entity, intermediates, now).map_err(chain_error)?;
        let roots = self.anchors.of(&leaf);
        let leaf = leaf.map_err(Refusal::from)?;
        check_identity(&leaf, None, |domain| self.anchors.accept(domain))?;
        check_revocation(&self.revocations, roots, end_entity, intermediates, now)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}

fn check_revocation(
    revocations: &Revocations,
    roots: &RootCertStore,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Refusal> {
    let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
    revocations.check(&chain, roots, UNIX_EPOCH + Duration::from_secs(now.as_secs()))
}

/// A certificate under the name of a trusted CA, but not signed by its key, leads to no trusted root either.
fn chain_error(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(CertificateError::BadSignature) => CertificateError::UnknownIssuer.into(),
        error => error,
    }
}

impl Refusal {
    pub(super) fn missing() -> Self {
        Self { reason: Reason::CertificateMissing, text: "the peer presented no certificate".into() }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let reason = match fault {
            Fault::Unreadable(_) | Fault::Chain(_) => Reason::CertificateInvalid,
            Fault::Identity(_) => Reason::CertificateIdentity,
        };
        Self { reason, text: fault.to_string() }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}
