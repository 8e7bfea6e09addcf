//! An X.509-SVID: one workload's certificate, its key, and the roots it trusts.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::model::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls::{
    RootCertStore, client::verify_server_cert_signed_by_trust_anchor, crypto::aws_lc_rs,
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use zeroize::Zeroize;

use super::{Csr, IssueError, Issued, Leaf};

/// How far a new certificate's not-before may lie ahead of this node's clock.
const SKEW_TOLERANCE: Duration = Duration::from_secs(60);
/// More certificates than this in a chain or a bundle are not believed.
const MAX_CERTIFICATES: usize = 64;

/// One workload's credentials. Immutable: a renewal makes a new one.
#[derive(Debug)]
pub(crate) struct Svid {
    /// The workload.
    pub(crate) id: SpiffeId,
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub(crate) key: PrivateKey,
    /// Whom this workload trusts.
    pub(crate) trust: Arc<TrustBundle>,
    /// First moment of validity.
    pub(crate) not_before: SystemTime,
    /// Last moment of validity.
    pub(crate) not_after: SystemTime,
    /// The leaf's serial number, lower-case hexadecimal.
    pub(crate) serial: String,
    /// When it was first accepted here. Issuers date not-before back, so that lifetimes are counted from this.
    pub(crate) issued: SystemTime,
}

/// The roots that a workload trusts; several while they rotate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustBundle {
    /// Self-signed certificates, DER.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

/// A private key. Lives in memory only, is never printed, and is wiped when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct PrivateKey(Arc<Secret>);

struct Secret(PrivateKeyDer<'static>);

/// A key pair made here and the request that asks for its certificate.
pub(super) struct PendingKey {
    key: PrivateKey,
    public_key: Vec<u8>,
    /// The request to hand to an issuer.
    pub(super) csr: Csr,
}

impl Svid {
    /// Whether the certificate may still be used at `now`.
    pub(crate) fn is_usable(&self, now: SystemTime) -> bool {
        now <= self.not_after
    }

    /// Whether it is past 90 % of its life at `now`: it should have been renewed long ago.
    pub(crate) fn is_late(&self, now: SystemTime) -> bool {
        let lifetime = self.not_after.duration_since(self.issued).unwrap_or_default();
        now > self.issued + lifetime.mul_f64(0.9)
    }

    /// Whether peers that trust `trust` believe this certificate, at `now` or at its end if that has passed.
    pub(super) fn is_trusted_by(&self, trust: &TrustBundle, now: SystemTime) -> bool {
        trust.verify(&self.chain, now.max(self.not_before).min(self.not_after)).is_ok()
    }

    /// The same certificate with other roots to trust.
    pub(super) fn with_trust(&self, trust: Arc<TrustBundle>) -> Self {
        Self {
            id: self.id.clone(),
            chain: self.chain.clone(),
            key: self.key.clone(),
            trust,
            serial: self.serial.clone(),
            ..*self
        }
    }

    /// Believes an issuer's answer to `pending` only if it is for the identity and key asked for, is valid at `now`, and
    /// leads to a root of the bundle that came with it.
    pub(super) fn accept(pending: PendingKey, issued: Issued, now: SystemTime) -> Result<Self, IssueError> {
        let Issued { chain, roots, key } = issued;
        let unusable = |text: String| IssueError::Unusable(text);
        if chain.is_empty()
            || chain.len() > MAX_CERTIFICATES
            || roots.is_empty()
            || roots.len() > MAX_CERTIFICATES
        {
            return Err(unusable(format!("{} certificates and {} roots in it", chain.len(), roots.len())));
        }
        let leaf = Leaf::read(&chain[0]).map_err(|fault| unusable(fault.to_string()))?;
        if leaf.id != pending.csr.id {
            return Err(unusable(format!("asked for {}, got a certificate for {}", pending.csr.id, leaf.id)));
        }
        let (key, public_key) = match key {
            Some(key) => {
                let public_key =
                    key.public_key().map_err(|error| unusable(format!("its private key: {error}")))?;
                (key, public_key)
            }
            None => (pending.key, pending.public_key),
        };
        if leaf.public_key != public_key {
            return Err(unusable("the certificate is for another key".into()));
        }
        if let Some(ahead) = leaf.not_before.duration_since(now).ok().filter(|ahead| *ahead > SKEW_TOLERANCE)
        {
            return Err(IssueError::ClockSkew { ahead: ahead.as_secs() });
        }
        if leaf.not_after <= now {
            let ago = now.duration_since(leaf.not_after).unwrap_or_default().as_secs();
            return Err(IssueError::Expired { ago });
        }
        let trust = Arc::new(TrustBundle { roots });
        trust.verify(&chain, now.max(leaf.not_before)).map_err(unusable)?;
        let Leaf { id, not_before, not_after, serial, .. } = leaf;
        Ok(Self { id, chain, key, trust, not_before, not_after, serial, issued: now })
    }
}

impl TrustBundle {
    /// The roots in the form that rustls verifies chains with.
    pub(crate) fn anchors(&self) -> Result<RootCertStore, rustls::Error> {
        let mut anchors = RootCertStore::empty();
        for root in &self.roots {
            anchors.add(root.clone())?;
        }
        Ok(anchors)
    }

    /// Whether peers with this bundle would believe `chain` at `at`; the error says why not.
    fn verify(&self, chain: &[CertificateDer<'static>], at: SystemTime) -> Result<(), String> {
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

impl PendingKey {
    /// Makes an ECDSA P-256 key and a request for `id`.
    pub(super) fn generate(id: SpiffeId, ttl: Duration) -> Result<Self, rcgen::Error> {
        let mut pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        let request = params.serialize_request(&pair)?;
        let public_key = pair.subject_public_key_info();
        let key = PrivateKey::from(PrivateKeyDer::Pkcs8(pair.serialize_der().into()));
        pair.zeroize();
        Ok(Self { key, public_key, csr: Csr { id, der: request.der().clone(), ttl } })
    }
}

impl PrivateKey {
    /// The key itself, for the TLS library.
    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0.0
    }

    /// DER of the SubjectPublicKeyInfo that belongs to it.
    pub(super) fn public_key(&self) -> Result<Vec<u8>, rcgen::Error> {
        Ok(KeyPair::try_from(&self.0.0)?.subject_public_key_info())
    }
}

impl From<PrivateKeyDer<'static>> for PrivateKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self(Arc::new(Secret(key)))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}
