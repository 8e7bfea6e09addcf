//! External authorization: providers that CUSTOM policies name, asked about connections and requests.
//!
//! Promises an answer within the provider's time-out, and the configured one where there is none. Leaves to policy whether a
//! provider is asked, and to whoever asks how it is reached.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode, request::Parts};

/// The providers of the configuration. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Providers(());

/// What a provider says.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Let it in, so changed.
    Admitted(Changes),
    /// Refuse it, with this answer.
    Denied {
        /// Of the answer.
        status: StatusCode,
        /// Of the answer.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Of the answer.
        body: bytes::Bytes,
        /// One sentence for the operator: what the provider said, or why it could not be asked.
        why: Arc<str>,
    },
}

/// What a provider wants changed in a request that it lets in, and in the answer to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Fields of the request that are replaced.
    pub(crate) set: Vec<(HeaderName, HeaderValue)>,
    /// Fields of the request that are added beside those of that name.
    pub(crate) append: Vec<(HeaderName, HeaderValue)>,
    /// Fields of the request that go.
    pub(crate) remove: Vec<HeaderName>,
    /// Fields that are added to the answer.
    pub(crate) respond: Vec<(HeaderName, HeaderValue)>,
}

/// What a provider is asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The client.
    pub(crate) source: std::net::SocketAddr,
    /// Its identity, as a SPIFFE ID; none in plaintext.
    pub(crate) peer: Option<&'a ambit_core::model::SpiffeId>,
    /// The pod and its port.
    pub(crate) destination: std::net::SocketAddr,
    /// The pod's identity.
    pub(crate) own: &'a ambit_core::model::SpiffeId,
    /// The request; `None` for a connection that is not HTTP.
    pub(crate) request: Option<&'a Parts>,
    /// The body's beginning, and whether it is all of it; where the provider wants that.
    pub(crate) body: Option<(&'a [u8], bool)>,
}

impl Providers {
    /// How much of a body the provider of that name wants to see, in bytes; 0 where it wants none.
    pub(crate) fn wants_body(&self, provider: &str) -> usize {
        let _ = (self.0, provider);
        0
    }

    /// Asks the provider of that name. One that is not configured denies.
    pub(crate) async fn ask(&self, provider: &str, subject: &Subject<'_>) -> Answer {
        let _ = subject;
        std::future::ready(Answer::Denied {
            status: StatusCode::FORBIDDEN,
            headers: Vec::new(),
            body: bytes::Bytes::new(),
            why: format!("the provider {provider} is not configured").into(),
        })
        .await
    }
}
