//! What every issuer of certificates looks like to the key store.

use std::{future::Future, pin::Pin, time::Duration};

use ambit_core::model::SpiffeId;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::svid::PrivateKey;

/// A source of workload certificates: the built-in CA, or a service on the network.
///
/// The store bounds how long one call may take and how many run at a time, and repeats failed ones with backoff; an
/// issuer makes one attempt. A dropped future is a cancelled attempt.
pub(crate) trait Issuer: Send + Sync + 'static {
    /// Name for logs and status, such as `builtin`.
    fn name(&self) -> &str;

    /// Asks for one certificate.
    fn issue(&self, csr: Csr) -> IssueFuture<'_>;
}

/// The outcome of one attempt, boxed so that issuers can be chosen at run time.
pub(crate) type IssueFuture<'a> = Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;

/// A request for one certificate. The key that signed it stays in the store.
#[derive(Clone, Debug)]
pub(crate) struct Csr {
    /// The identity asked for.
    pub(crate) id: SpiffeId,
    /// PKCS#10: ECDSA P-256, empty subject, one critical URI SAN, nothing else (spec/wire.md §3.1).
    pub(crate) der: CertificateSigningRequestDer<'static>,
    /// The lifetime asked for; issuers may give less.
    pub(crate) ttl: Duration,
}

/// An issuer's answer, not yet believed.
#[derive(Debug)]
pub(crate) struct Issued {
    /// Leaf first, then intermediates; no roots.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The trust bundle that came with it.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The private key, from issuers that make keys themselves (SPIRE's delegated identity, mounted files);
    /// `None` where the certificate is for the key of the request.
    pub(crate) key: Option<PrivateKey>,
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The issuer was too slow.
    #[error("the issuer did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The issuer could not be asked, or could not answer for now.
    #[error("the issuer cannot be reached: {0}")]
    Unreachable(String),
    /// The issuer answered and will not sign.
    #[error("the issuer refuses: {0}")]
    Refused(String),
    /// The answer does not fit the request, or would be of no use.
    #[error("the issuer's answer is unusable: {0}")]
    Unusable(String),
    /// The certificate is not valid yet by this node's clock.
    #[error(
        "the certificate begins {ahead} s after this node's time: this node's clock is behind, or the issuer's ahead"
    )]
    ClockSkew {
        /// Seconds.
        ahead: u64,
    },
    /// The key pair or the request could not be made here.
    #[error("cannot make a key pair and request")]
    Request(#[source] rcgen::Error),
    /// Signing failed.
    #[error("cannot sign")]
    Signing(#[source] rcgen::Error),
    /// The issuer's code panicked.
    #[error("the issuer failed internally")]
    Internal,
}
