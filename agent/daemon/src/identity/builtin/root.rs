//! A new CA: a self-signed root.

use std::time::{Duration, SystemTime};

use ambit_core::model::TrustDomain;
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use time::OffsetDateTime;

use super::{BACKDATE, CaFiles, files};

/// Lifetime of a CA made here.
pub(super) const LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A new self-signed CA for `trust_domain`.
pub(super) fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<CaFiles, rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let serial = random_serial();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ambit");
    let mark = HEXLOWER.encode(&serial.to_bytes()[..4]);
    params.distinguished_name.push(DnType::CommonName, format!("ambit CA {mark}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + LIFETIME);
    let certificate = params.self_signed(&key)?.pem();
    Ok(CaFiles {
        ca_cert: certificate.clone().into(),
        ca_key: key.serialize_pem().into_bytes().into(),
        cert_chain: certificate.clone().into(),
        root_cert: certificate.into(),
        layout: &files::OWN,
    })
}

/// 126 random bits; positive, and always of 16 bytes (RFC 5280 §4.1.2.2).
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}
