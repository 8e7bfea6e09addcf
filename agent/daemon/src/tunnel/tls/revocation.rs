//! Certificate revocation lists: read from one file, asked about every peer.
//!
//! Every certificate of the path that leads to a root is looked up, and whoever cannot be looked up is refused. What no list
//! speaks of is allowed, a list past its next update still counts. Leaves files and their changes to others.

use std::{
    cell::RefCell,
    slice,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::reason::Reason;
use rustls::{RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath, anchor_from_trusted_cert,
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

    /// Issuer and next update of every list.
    pub(crate) fn updates(&self) -> &[(String, Option<SystemTime>)] {
        &self.updates
    }

    /// Refuses a chain, leaf first, unless a path from its leaf to one of `roots` is found on which nothing is revoked. Any
    /// doubt refuses as well: a stranger chooses what stands in a chain, and so how the search for a path ends.
    pub(super) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        roots: &RootCertStore,
        at: SystemTime,
    ) -> Result<(), Refusal> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let refusal = RefCell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            self.judge(path, at).map_err(|found| {
                *refusal.borrow_mut() = Some(found);
                // Any error has the search go on with other paths.
                Error::CertRevoked
            })
        };
        let anchors = &roots.roots;
        verify(chain, anchors, at, None, Some(&judge))
            .map_err(|error| refusal.take().unwrap_or_else(|| undecided(&error)))
    }

    /// Looks every certificate of a verified path up in the lists that its issuer has signed.
    fn judge(&self, path: &VerifiedPath<'_>, at: SystemTime) -> Result<(), Refusal> {
        let above: Vec<_> = path.intermediate_certificates().collect();
        let mut chain = vec![path.end_entity().der()];
        let mut issuers = vec![path.end_entity().issuer()];
        for certificate in above {
            chain.push(certificate.der());
            issuers.push(certificate.issuer());
        }
        for (place, issuer) in issuers.into_iter().enumerate() {
            let signer = match chain.get(place + 1) {
                Some(certificate) => {
                    anchor_from_trusted_cert(certificate).map_err(|error| undecided(&error))?
                }
                None => path.anchor().clone(),
            };
            // One at a time, and from this certificate downwards: two CAs may bear one name, as while roots rotate, and the
            // list of one must not stand before that of the other.
            for list in self.lists.iter().filter(|list| list.issuer() == issuer) {
                match verify(&chain[..=place], slice::from_ref(&signer), at, Some(list), None) {
                    Ok(()) => {}
                    Err(Error::CertRevoked) => return Err(revoked()),
                    Err(error) if is_of_another_key(&error) => {}
                    Err(error) => return Err(undecided(&error)),
                }
            }
        }
        Ok(())
    }
}

/// Whether `chain` leads to one of `roots`; the error says why not.
pub(super) fn verify_again(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    at: SystemTime,
) -> Result<(), String> {
    verify(chain, &roots.roots, at, None, None).map_err(|error| error.to_string())
}

fn revoked() -> Refusal {
    Refusal {
        reason: Reason::CertificateRevoked,
        text: "the peer's certificate, or one above it, has been revoked".into(),
    }
}

fn undecided(error: &Error) -> Refusal {
    Refusal {
        reason: Reason::CertificateRevoked,
        text: format!(
            "whether the peer's certificate, or one above it, has been revoked cannot be told ({error}); \
             what cannot be told is refused"
        ),
    }
}

/// Whether a list turned out to be that of another CA of the same name: this one's key has not signed it.
fn is_of_another_key(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCrlSignatureForPublicKey
            | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
    )
}

/// Looks for a path from the leaf of `chain` to one of `anchors`, on which `list` names no certificate, and which `accept`
/// has nothing against.
fn verify(
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    at: SystemTime,
    list: Option<&CertRevocationList<'_>>,
    accept: Option<&dyn Fn(&VerifiedPath<'_>) -> Result<(), Error>>,
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::UnknownIssuer)?;
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let lists: &[_] = list.as_slice();
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
        .verify_for_usage(algorithms, anchors, intermediates, at, AnyUsage, revocation, accept)
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
