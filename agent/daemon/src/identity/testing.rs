//! Certificates and clocks for the tests of this room and of the tunnel.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::model::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, RevokedCertParams, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;

use super::{Clock, Svid, TrustBundle};

/// A clock that follows tokio's, so that paused time is the time of day too. `new` needs a runtime.
pub(crate) struct TokioClock {
    base: SystemTime,
    start: Instant,
}

impl TokioClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { base: SystemTime::now(), start: Instant::now() })
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }
}

/// A clock that stands where it is put.
pub(crate) struct FixedClock(pub(crate) std::sync::Mutex<SystemTime>);

impl FixedClock {
    pub(crate) fn new(now: SystemTime) -> Arc<Self> {
        Arc::new(Self(now.into()))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for FixedClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

pub(crate) fn id(uri: &str) -> SpiffeId {
    uri.parse().unwrap()
}

/// A CA without any of the built-in one's scruples.
pub(crate) struct TestCa {
    pub(crate) certificate: CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl TestCa {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_key(name, KeyPair::generate().unwrap())
    }

    pub(crate) fn with_key(name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A CA below this one. What `change` spoils is in its certificate only, not in what it signs.
    pub(crate) fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.below_with_key(name, KeyPair::generate().unwrap(), change)
    }

    pub(crate) fn below_with_key(
        &self,
        name: &str,
        key: KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let mut shown = params.clone();
        change(&mut shown);
        let certificate = shown.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    pub(crate) fn trust(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle { roots: vec![self.certificate.clone()] })
    }

    /// A leaf with these URI SANs, valid from `from` to `to`; `change` may spoil it further.
    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        from: SystemTime,
        to: SystemTime,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = from.into();
        params.not_after = to.into();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (certificate, key.into())
    }

    /// DER of a list of revoked serial numbers.
    pub(crate) fn revocation_list(&self, serials: &[u64], from: SystemTime, to: SystemTime) -> Vec<u8> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: from.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: from.into(),
            next_update: to.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    /// Credentials for `uri` that trust this CA.
    pub(crate) fn svid(&self, uri: &str, from: SystemTime, to: SystemTime) -> Svid {
        let (certificate, key) = self.leaf(&[uri], from, to, |_| ());
        Svid {
            id: id(uri),
            chain: vec![certificate],
            key: key.into(),
            trust: self.trust(),
            not_before: from,
            not_after: to,
            serial: "01".into(),
            anchor: None,
            issued: from,
        }
    }
}
