//! Certificate revocation lists: read from one file, asked about every peer.
//!
//! The whole chain is checked. What no list speaks of is allowed, a list past its next update still counts. Leaves files and
//! their changes to others.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::reason::Reason;
use rustls::{RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::verify::Refusal;

/// More lists than this in one file are not taken.
const MAX_LISTS: usize = 256;

/// What has been revoked.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    lists: Vec<CertRevocationList<'static>>,
    /// Issuer and next update of each list.
    updates: Vec<(String, Option<SystemTime>)>,
}

/// Why a file holds no revocation lists.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevocationError {
    /// Not PEM.
    #[error("not readable as PEM: {0}")]
    Pem(rustls_pki_types::pem::Error),
    /// PEM without a list in it.
    #[error("holds no revocation list: neither DER nor a PEM block X509 CRL")]
    Nothing,
    /// More lists than one can check.
    #[error("holds more than {MAX_LISTS} revocation lists")]
    TooMany,
    /// A list cannot be used.
    #[error(
        "revocation list {number} cannot be used ({problem:?}): lists of version 2 are needed, complete and signed (RFC 5280 §5)"
    )]
    List {
        /// Counted from 1.
        number: usize,
        /// What the verifier says.
        problem: Error,
    },
}

impl Revocations {
    /// Reads a file's content: PEM blocks one after another, or one DER list.
    pub(crate) fn parse(content: &[u8]) -> Result<Self, RevocationError> {
        let lists = if content.first() == Some(&0x30) {
            vec![CertificateRevocationListDer::from(content.to_vec())]
        } else {
            CertificateRevocationListDer::pem_slice_iter(content)
                .collect::<Result<Vec<_>, _>>()
                .map_err(RevocationError::Pem)?
        };
        match lists.len() {
            0 => return Err(RevocationError::Nothing),
            1..=MAX_LISTS => {}
            _ => return Err(RevocationError::TooMany),
        }
        let mut read = Self::default();
        for (index, der) in lists.iter().enumerate() {
            let list = OwnedCertRevocationList::from_der(der)
                .map_err(|problem| RevocationError::List { number: index + 1, problem })?;
            read.lists.push(list.into());
            read.updates.push(next_update(der));
        }
        Ok(read)
    }

    /// Whether nothing can be revoked.
    pub(crate) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Issuer and next update of every list.
    pub(crate) fn updates(&self) -> &[(String, Option<SystemTime>)] {
        &self.updates
    }

    /// Refuses a verified chain, leaf first, of which a certificate has been revoked.
    pub(super) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        at: SystemTime,
    ) -> Result<(), Refusal> {
        let all: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let revoked = match verify(chain, roots, at, &all) {
            Ok(()) => false,
            Err(Error::CertRevoked) => true,
            // Two issuers of one name, as while roots rotate: the other one's list says nothing of this chain.
            Err(_) => {
                all.iter().any(|list| matches!(verify(chain, roots, at, &[*list]), Err(Error::CertRevoked)))
            }
        };
        match revoked {
            true => Err(Refusal {
                reason: Reason::CertificateRevoked,
                text: "the peer's certificate, or one above it, has been revoked".into(),
            }),
            false => Ok(()),
        }
    }
}

/// Whether `chain` leads to one of `roots`; the error says why not.
pub(super) fn verify_again(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    at: SystemTime,
) -> Result<(), String> {
    verify(chain, roots, at, &[]).map_err(|error| error.to_string())
}

fn verify(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    at: SystemTime,
    lists: &[&CertRevocationList<'_>],
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::UnknownIssuer)?;
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    // None without a list.
    let revocation = RevocationOptionsBuilder::new(lists).ok().map(|options| {
        options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build()
    });
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(algorithms, &roots.roots, intermediates, at, AnyUsage, revocation, None)
        .map(drop)
}

/// The handshake has verified what the certificate may be used for.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        Ok(())
    }
}

fn next_update(der: &[u8]) -> (String, Option<SystemTime>) {
    match CertificateRevocationList::from_der(der) {
        Ok((_, list)) => {
            let end = list.next_update().and_then(|time| u64::try_from(time.timestamp()).ok());
            let end = end.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
            (list.issuer().to_string().chars().take(256).collect(), end)
        }
        Err(_) => ("unknown".into(), None),
    }
}

#[cfg(test)]
mod tests;
