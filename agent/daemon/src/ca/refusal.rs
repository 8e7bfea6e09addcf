//! Why a certificate is not issued: one value, from which the gRPC code, the metric's label and the audit line follow.

use std::time::Duration;

use ambit_core::model::{SpiffeId, TrustDomain};
use tonic::{Code, Status};

use crate::identity::RequestFault;

/// A refusal. Its text goes to the caller: it names nothing that the caller does not know or may not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// No token and no client certificate.
    #[error("no bearer token and no client certificate")]
    NoCredentials,
    /// The token or certificate belongs to no caller.
    #[error("the {0} belongs to no caller of this CA")]
    UnknownCaller(&'static str),
    /// The identity runs elsewhere, or nowhere.
    #[error("{id} does not run on node {node}")]
    NotOnNode {
        /// The identity asked for.
        id: SpiffeId,
        /// The caller's node.
        node: String,
    },
    /// An identity of somebody else's trust domain.
    #[error("{id} is not in this CA's trust domain {own}")]
    TrustDomain {
        /// The identity asked for.
        id: SpiffeId,
        /// The CA's.
        own: TrustDomain,
    },
    /// The request cannot be read, is not signed, or asks for more than an identity.
    #[error(transparent)]
    Request(#[from] RequestFault),
    /// Too long a lifetime.
    #[error("a lifetime of {asked} s was asked for, at most {} s are given", max.as_secs())]
    Lifetime {
        /// Seconds.
        asked: i64,
        /// The longest.
        max: Duration,
    },
    /// Too many requests.
    #[error("too many requests; try again later")]
    Rate,
    /// The CA cannot sign now.
    #[error("the CA cannot sign: {0}")]
    Authority(String),
}

impl Refusal {
    /// The word for metrics and the audit log.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NoCredentials => "no_credentials",
            Self::UnknownCaller(_) => "unknown_caller",
            Self::NotOnNode { .. } => "not_on_node",
            Self::TrustDomain { .. } => "trust_domain",
            Self::Request(RequestFault::Identity(_)) => "identity",
            Self::Request(RequestFault::Request(_)) => "request",
            Self::Request(RequestFault::Signature) => "signature",
            Self::Request(RequestFault::Key) => "key",
            Self::Lifetime { .. } => "lifetime",
            Self::Rate => "rate",
            Self::Authority(_) => "authority",
        }
    }

    /// The gRPC code.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NoCredentials | Self::UnknownCaller(_) => Code::Unauthenticated,
            Self::NotOnNode { .. } | Self::TrustDomain { .. } => Code::PermissionDenied,
            Self::Request(_) | Self::Lifetime { .. } => Code::InvalidArgument,
            Self::Rate => Code::ResourceExhausted,
            Self::Authority(_) => Code::Unavailable,
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
