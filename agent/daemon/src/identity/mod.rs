//! Issuers and the key store: publishes one SVID per workload identity on this node, keys in memory only.
//!
//! Promises that a certificate that is still valid is used whatever its issuer does, and that an expired one never is.
//! Leaves to others: which identities there are (app), TLS (tunnel).

mod builtin;
mod certificate;
mod clock;
mod issuer;
mod istio;
mod store;
mod svid;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use builtin::{BuiltinCa, CaError, RootStanding};
pub(crate) use certificate::{Fault, Leaf};
pub(crate) use clock::{Clock, SystemClock};
pub(crate) use issuer::{Csr, IssueError, IssueFuture, Issued, Issuer};
pub(crate) use istio::{IstioIssuer, IstioSettings};
pub(crate) use store::{IdentityState, IdentityStatus, KeyStore};
pub(crate) use svid::Svid;
