//! What an operator says of a provider, complete and within its bounds.

use std::{fmt, sync::Arc, time::Duration};

use ambit_core::discovery::ProviderPlace;
use http::{HeaderName, HeaderValue, StatusCode};

/// One provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProviderSettings {
    /// What policies call it.
    pub(crate) name: Arc<str>,
    /// Where it is.
    pub(crate) addr: ProviderAddr,
    /// How long it may take to answer, connecting included.
    pub(crate) timeout: Duration,
    /// Whether it lets in who cannot be judged.
    pub(crate) fail_open: bool,
    /// What such a client is answered otherwise.
    pub(crate) status_on_error: StatusCode,
    /// What it is shown of bodies, if anything.
    pub(crate) body: Option<BodySettings>,
    /// How it is asked.
    pub(crate) form: Form,
}

impl ProviderSettings {
    /// Where it is, for who knows the cluster's services.
    pub(crate) fn place(&self) -> ProviderPlace {
        let ProviderAddr { namespace, host, port } = &self.addr;
        let namespace = namespace.as_deref().map(Arc::from);
        ProviderPlace { provider: self.name.clone(), namespace, host: host.as_str().into(), port: *port }
    }
}

/// Where a provider is: a service of the cluster, or a host that DNS knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProviderAddr {
    /// The namespace of the service, where the host does not say it.
    pub(crate) namespace: Option<String>,
    /// The service's name as DNS has it, another name, or an IP address.
    pub(crate) host: String,
    /// The service's port.
    pub(crate) port: u16,
}

impl fmt::Display for ProviderAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a provider is shown of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BodySettings {
    /// No more than this.
    pub(crate) max_bytes: usize,
    /// Whether it takes the beginning of longer ones; else such requests are refused.
    pub(crate) allow_partial: bool,
    /// Whether it takes them as bytes, not as text; for gRPC alone.
    pub(crate) as_bytes: bool,
}

/// How a provider is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// By Envoy's gRPC service.
    Grpc,
    /// By a request like the one in question.
    Http(Box<HttpSettings>),
}

/// What is said to a provider by HTTP, and what of its answers counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HttpSettings {
    /// Before every path.
    pub(crate) path_prefix: String,
    /// Fields of the request that it is shown.
    pub(crate) shown: Vec<NamePattern>,
    /// Fields that it is shown beside them.
    pub(crate) added: Vec<(HeaderName, HeaderValue)>,
    /// Fields of its answer that a request which it lets in goes on with.
    pub(crate) to_upstream: Vec<NamePattern>,
    /// Fields of its answer that the client gets when it denies; all of them if none is named.
    pub(crate) to_client_on_deny: Vec<NamePattern>,
    /// Fields of its answer that the client gets with the application's.
    pub(crate) to_client_on_allow: Vec<NamePattern>,
}

/// Names of header fields, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamePattern {
    /// This one.
    Exact(String),
    /// Those that begin so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
}

impl NamePattern {
    /// `NAME`, `START*` or `*END`.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let (pattern, rest) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(end), _) => (Self::Suffix(end.to_owned()), end),
            (None, Some(start)) => (Self::Prefix(start.to_owned()), start),
            (None, None) => (Self::Exact(text.clone()), &*text),
        };
        let is_name = HeaderName::from_bytes(rest.as_bytes()).is_ok();
        if rest.contains('*') || !(is_name || (rest.is_empty() && text == "*")) {
            return Err(format!("{text:?} is no header name: use NAME, START* or *END"));
        }
        Ok(pattern)
    }

    /// Whether one of `patterns` covers `name`.
    pub(super) fn any(patterns: &[Self], name: &HeaderName) -> bool {
        patterns.iter().any(|pattern| match pattern {
            Self::Exact(exact) => name.as_str() == exact,
            Self::Prefix(start) => name.as_str().starts_with(start.as_str()),
            Self::Suffix(end) => name.as_str().ends_with(end.as_str()),
        })
    }
}
