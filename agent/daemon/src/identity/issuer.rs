//! What every issuer of certificates looks like to the key store.

use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ambit_core::{model::SpiffeId, rotation::Failure};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::{Notify, watch};

use super::{
    key::PrivateKey,
    trust::{Foreign, TrustBundle},
};

/// A source of workload certificates: the built-in CA, or a service on the network.
///
/// The store bounds how long one call may take and how many run at a time, and repeats failed ones with backoff; an
/// issuer makes one attempt. A dropped future is a cancelled attempt.
pub(crate) trait Issuer: Send + Sync + 'static {
    /// Name for logs and status, such as `builtin`.
    fn name(&self) -> &str;

    /// Asks for one certificate.
    fn issue(&self, csr: Csr) -> IssueFuture<'_>;

    /// The trust bundle of all identities and its changes, from issuers that learn of it apart from certificates. It
    /// then stands above the bundles that come with certificates, and changes reach all identities at once.
    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        None
    }

    /// The trust bundles of other trust domains and their changes, from issuers that federate.
    fn foreign(&self) -> Option<watch::Receiver<Foreign>> {
        None
    }

    /// Nobody will ask for identities but these until it is told otherwise.
    fn retain(&self, _ids: &HashSet<SpiffeId>) {}

    /// Identities for which there is something new before their renewal is due, from issuers that are told.
    fn renewed(&self) -> Option<Arc<Renewed>> {
        None
    }
}

/// Identities that an issuer has new certificates for; bounded by the number of identities.
#[derive(Debug, Default)]
pub(crate) struct Renewed {
    ids: Mutex<HashSet<SpiffeId>>,
    notify: Notify,
}

impl Renewed {
    /// Tells the store that there is something new for `id`.
    pub(crate) fn tell(&self, id: SpiffeId) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        self.notify.notify_one();
    }

    /// Waits until something was told, and takes it. Cancel safe.
    pub(super) async fn take(&self) -> HashSet<SpiffeId> {
        loop {
            let ids = std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner));
            if !ids.is_empty() {
                return ids;
            }
            self.notify.notified().await;
        }
    }
}

/// The outcome of one attempt, boxed so that issuers can be chosen at run time.
pub(crate) type IssueFuture<'a> = Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;

/// A request for one certificate. The key that signed it stays in the store.
#[derive(Clone, Debug)]
pub(crate) struct Csr {
    /// The identity asked for.
    pub(crate) id: SpiffeId,
    /// PKCS#10 (RFC 2986): ECDSA P-256, empty subject, one URI SAN, and as the subject is empty a critical one (RFC 5280,
    /// section 4.2.1.6); nothing else.
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
    /// A certificate that was made for our request is past its end by this node's clock.
    #[error(
        "a new certificate has already expired by this node's clock, {ago} s ago: this node's clock is ahead"
    )]
    Expired {
        /// Seconds.
        ago: u64,
    },
    /// A certificate that somebody keeps for us is past its end.
    #[error(
        "the certificate that it has ended {ago} s ago, and there is no newer one: whoever renews it has not, or this node's clock is ahead"
    )]
    Stale {
        /// Seconds.
        ago: u64,
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

impl IssueError {
    /// What it says of the issuer: where it is not to be heard, it is listened for.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Timeout(_) | Self::Unreachable(_) | Self::Expired { .. } | Self::Stale { .. } => {
                Failure::Silence
            }
            _ => Failure::Answer,
        }
    }
}
