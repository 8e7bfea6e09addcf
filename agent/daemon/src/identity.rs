//! Issuers and the key store: publishes one SVID per workload identity on this node, keys in memory only.
//!
//! Promises that a certificate that is still valid is used whatever its issuer does, and that an expired one never is.
//! Leaves to others: which identities there are (app), TLS (tunnel).

mod also_trusting;
mod builtin;
mod certificate;
mod clock;
mod files;
mod issuer;
mod istio;
mod key;
mod pem;
mod published;
mod request;
mod roots;
mod spire;
mod store;
mod svid;
#[cfg(test)]
pub(crate) mod testing;
mod trust;
mod vault;

pub(crate) use also_trusting::AlsoTrusting;
pub(crate) use builtin::{BuiltinCa, CaError, CaFiles, LiveCa, RootStanding};
pub(crate) use certificate::check_chain;
pub use certificate::{Fault, Leaf, issuer_name};
pub(crate) use clock::{Clock, SystemClock};
pub(crate) use files::FilesIssuer;
pub(crate) use issuer::{Csr, IssueError, IssueFuture, Issued, Issuer, Renewed};
pub(crate) use istio::{IstioIssuer, IstioSettings};
pub use pem::{MAX_CERTIFICATES, certificates};
pub(crate) use published::PublishedRoots;
pub use request::{CheckedRequest, RequestFault};
pub(crate) use roots::{Root, roots};
pub(crate) use spire::{Selectors, SpireIssuer};
pub(crate) use store::{IdentityState, IdentityStatus, KeyStore};
pub(crate) use svid::Svid;
pub(crate) use trust::{Foreign, TrustBundle};
pub(crate) use vault::{VaultConfig, VaultIssuer, VaultLogin};
