//! An X.509-SVID: one workload's certificate, its key, and the roots it trusts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::model::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroize;

use super::{
    certificate::{Leaf, check_chain},
    issuer::{Csr, IssueError, Issued},
    key::PrivateKey,
    pem::MAX_CERTIFICATES,
    trust::TrustBundle,
};

/// How far a new certificate's not-before may lie ahead of this node's clock.
const SKEW_TOLERANCE: Duration = Duration::from_secs(60);

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
    /// The root that the certificate led to when it was accepted.
    pub(crate) anchor: Option<CertificateDer<'static>>,
    /// First moment of validity.
    pub(crate) not_before: SystemTime,
    /// Last moment of validity.
    pub(crate) not_after: SystemTime,
    /// The leaf's serial number, lower-case hexadecimal.
    pub(crate) serial: String,
    /// When it was first accepted here. Issuers date not-before back, so that lifetimes are counted from this.
    pub(crate) issued: SystemTime,
}

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
            anchor: self.anchor.clone(),
            serial: self.serial.clone(),
            ..*self
        }
    }

    /// Believes an issuer's answer to `pending` only if it is for the identity and key asked for, is valid at `now`, and
    /// leads to a root of the bundle that came with it.
    pub(super) fn accept(pending: PendingKey, issued: Issued, now: SystemTime) -> Result<Self, IssueError> {
        let Issued { chain, roots, key } = issued;
        let unusable = |text: String| IssueError::Unusable(text);
        let [first, others @ ..] = chain.as_slice() else {
            return Err(unusable("0 certificates in it".into()));
        };
        // What peers would refuse unread is of no use.
        check_chain(first, others).map_err(|fault| unusable(fault.to_string()))?;
        if roots.is_empty() || roots.len() > MAX_CERTIFICATES {
            return Err(unusable(format!("{} roots in it", roots.len())));
        }
        let leaf = Leaf::read(first).map_err(|fault| unusable(fault.to_string()))?;
        if leaf.id != pending.csr.id {
            return Err(unusable(format!("asked for {}, got a certificate for {}", pending.csr.id, leaf.id)));
        }
        let kept = key.is_some();
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
            return Err(if kept { IssueError::Stale { ago } } else { IssueError::Expired { ago } });
        }
        let trust = Arc::new(TrustBundle { roots });
        let at = now.max(leaf.not_before);
        trust.verify(&chain, at).map_err(unusable)?;
        let anchor = trust.anchor_of(&chain, at);
        let Leaf { id, not_before, not_after, serial, .. } = leaf;
        Ok(Self { id, chain, key, trust, anchor, not_before, not_after, serial, issued: now })
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
