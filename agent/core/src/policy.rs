//! The compiled policy set and the one verdict over it. Knows nothing of discovery, sockets or HTTP parsing.

use std::{net::IpAddr, sync::Arc};

use crate::model::{Labels, ObjectName, SpiffeId};

/// The PeerAuthentication objects in force, compiled. Cheap to clone; readers take a snapshot.
#[derive(Clone, Debug, Default)]
pub struct Policies {}

/// `mtls.mode` of a PeerAuthentication as it is in force for one port (spec/policy.md §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsMode {
    /// Plaintext is accepted beside mutual TLS.
    Permissive,
    /// Only mutual TLS is accepted.
    Strict,
}

/// What a verdict is taken over: one inbound connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Namespace of the receiving pod.
    pub namespace: &'a str,
    /// Labels of the receiving pod.
    pub labels: &'a Labels,
    /// The pod's own (target) port.
    pub port: u16,
    /// The peer's verified identity; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
}

/// The answer for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it through.
    Allow,
    /// Refuse it, and say why.
    Deny(Denial),
}

/// Why a connection is refused, for logs, metrics and the DENY frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The policy object that decided, if one did.
    pub policy: Option<ObjectName>,
    /// One sentence for an operator.
    pub text: Arc<str>,
}

/// The verdict for one connection under `policies`.
pub fn decide(_policies: &Policies, _facts: &Facts<'_>) -> Verdict {
    Verdict::Allow
}
