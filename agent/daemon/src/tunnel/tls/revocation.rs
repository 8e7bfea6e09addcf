//! Certificate revocation lists: read from one file, asked about every peer.
//!
//! Every certificate of the path that leads to a root is looked up, and whoever cannot be looked up is refused. What no list
//! speaks of is allowed, a list past its next update still counts. Leaves files and their changes to others.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::reason::Reason;
use rustls::{RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    TrustAnchor, UnixTime, pem::PemObject,
};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RawPublicKeyEntity, VerifiedPath,
};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::verify::Refusal;

/// More lists than this in one file are not taken.
const MAX_LISTS: usize = 256;

/// Keys that a list remembers to be its signer's, or not. Only those of verified paths are asked about.
const MAX_SIGNERS: usize = 64;

/// What has been revoked.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    lists: Vec<List>,
    /// Issuer and next update of each list.
    updates: Vec<(String, Option<SystemTime>)>,
}

/// One list, and what shows who has signed it.
#[derive(Debug)]
struct List {
    list: CertRevocationList<'static>,
    /// The signed part.
    signed: Vec<u8>,
    signature: Vec<u8>,
    /// Whether a key, as DER of its SubjectPublicKeyInfo, is the signer's.
    signers: Mutex<HashMap<Vec<u8>, bool>>,
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
    /// Nobody could tell whose a list is.
    #[error(
        "revocation list {0} is signed in a way that is not supported: use ECDSA or RSA with SHA-256 or more, or Ed25519"
    )]
    Algorithm(usize),
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
            let (list, update) = List::read(der, index + 1)?;
            read.lists.push(list);
            read.updates.push(update);
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
            self.judge(path).map_err(|found| {
                *refusal.borrow_mut() = Some(found);
                // Any error has the search go on with other paths.
                Error::CertRevoked
            })
        };
        verify(chain, roots, at, Some(&judge))
            .map_err(|error| refusal.take().unwrap_or_else(|| undecided(&error)))
    }

    /// Looks every certificate of a verified path up in the lists that its issuer has signed.
    fn judge(&self, path: &VerifiedPath<'_>) -> Result<(), Refusal> {
        let leaf = path.end_entity();
        let mut below = (leaf.serial(), leaf.issuer());
        for signer in path.intermediate_certificates() {
            self.look_up(below, &signer.subject_public_key_info())?;
            below = (signer.serial(), signer.issuer());
        }
        self.look_up(below, &whole_key(path.anchor()))
    }

    /// Refuses a certificate that its issuer, which has the key `signer`, has revoked. Two CAs may bear one name, as while roots
    /// rotate: what the other one's key has signed says nothing of it.
    fn look_up(
        &self,
        (serial, issuer): (&[u8], &[u8]),
        signer: &SubjectPublicKeyInfoDer<'_>,
    ) -> Result<(), Refusal> {
        for list in self.lists.iter().filter(|list| list.list.issuer() == issuer) {
            if list.is_signed_by(signer)
                && list.list.find_serial(serial).map_err(|error| undecided(&error))?.is_some()
            {
                return Err(revoked());
            }
        }
        Ok(())
    }
}

impl List {
    /// Reads the list that is the file's `number`th; with its issuer and next update.
    fn read(der: &[u8], number: usize) -> Result<(Self, (String, Option<SystemTime>)), RevocationError> {
        let unusable = |problem| RevocationError::List { number, problem };
        let list = OwnedCertRevocationList::from_der(der).map_err(unusable)?.into();
        let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|_| unusable(Error::BadDer))?;
        let algorithm = parsed.signature_algorithm.algorithm.as_bytes();
        if !algorithms().iter().any(|known| is_of_kind(*known, algorithm)) {
            return Err(RevocationError::Algorithm(number));
        }
        let end = parsed.next_update().and_then(|time| u64::try_from(time.timestamp()).ok());
        let end = end.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let issuer = parsed.issuer().to_string().chars().take(256).collect();
        let signed = parsed.tbs_cert_list.as_ref().to_vec();
        let signature = parsed.signature_value.data.to_vec();
        Ok((Self { list, signed, signature, signers: Mutex::default() }, (issuer, end)))
    }

    /// Whether this key has signed the list.
    fn is_signed_by(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = signers.get(key.as_ref()) {
            return *known;
        }
        let is_signer = RawPublicKeyEntity::try_from(key).is_ok_and(|key| {
            // The key says which of them can be meant.
            let verify = |algorithm| key.verify_signature(algorithm, &self.signed, &self.signature).is_ok();
            algorithms().iter().any(|algorithm| verify(*algorithm))
        });
        if signers.len() >= MAX_SIGNERS {
            signers.clear();
        }
        signers.insert(key.to_vec(), is_signer);
        is_signer
    }
}

/// Whether `chain` leads to one of `roots`; the error says why not.
pub(super) fn verify_again(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    at: SystemTime,
) -> Result<(), String> {
    verify(chain, roots, at, None).map_err(|error| error.to_string())
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

/// Says what it has against a path.
type Accept<'a> = &'a dyn Fn(&VerifiedPath<'_>) -> Result<(), Error>;

/// Looks for a path from the leaf of `chain` to one of `roots` that `accept` has nothing against.
fn verify(
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    at: SystemTime,
    accept: Option<Accept<'_>>,
) -> Result<(), Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(Error::UnknownIssuer)?;
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(algorithms(), &roots.roots, intermediates, at, AnyUsage, None, accept)
        .map(drop)
}

fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    aws_lc_rs::default_provider().signature_verification_algorithms.all
}

/// Whether an algorithm has this object identifier, whatever its parameters.
fn is_of_kind(algorithm: &dyn SignatureVerificationAlgorithm, identifier: &[u8]) -> bool {
    let known = algorithm.signature_alg_id();
    known
        .strip_prefix(&[0x06])
        .and_then(<[u8]>::split_first)
        .is_some_and(|(len, rest)| usize::from(*len) == identifier.len() && rest.starts_with(identifier))
}

/// The key of a root as other certificates have theirs, in a SEQUENCE (X.690, 8.9).
fn whole_key(anchor: &TrustAnchor<'_>) -> SubjectPublicKeyInfoDer<'static> {
    let key = anchor.subject_public_key_info.as_ref();
    let len = key.len().to_be_bytes();
    let len = &len[len.iter().take_while(|byte| **byte == 0).count()..];
    let mut whole = vec![0x30];
    // Up to 127 the length stands alone, else behind its own length.
    if key.len() > 127 {
        whole.push(0x80 | len.len() as u8);
    }
    whole.extend(len);
    whole.extend(key);
    whole.into()
}

/// The handshake has verified what the certificate may be used for.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
