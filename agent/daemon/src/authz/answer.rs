//! What comes of asking: an answer for who asked, and what went wrong where there is none.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};

use super::changes::Changes;
use crate::telemetry::CheckResult;

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
        body: Bytes,
        /// One sentence for the operator: what the provider said, or why it could not be asked.
        why: Arc<str>,
    },
}

/// What a provider that could be asked has said.
#[derive(Debug)]
pub(super) enum Verdict {
    Admitted(Changes),
    Denied(Denial),
}

impl Verdict {
    pub(super) fn is_admitted(&self) -> bool {
        matches!(self, Self::Admitted(_))
    }
}

/// How a client is refused.
#[derive(Clone, Debug)]
pub(super) struct Denial {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    pub(super) why: Arc<str>,
}

impl Denial {
    pub(super) fn forbidden(why: String) -> Self {
        Self { status: StatusCode::FORBIDDEN, headers: Vec::new(), body: Bytes::new(), why: why.into() }
    }
}

impl From<Denial> for Answer {
    fn from(denial: Denial) -> Self {
        let Denial { status, headers, body, why } = denial;
        Self::Denied { status, headers, body, why }
    }
}

/// Why there is no verdict.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) result: CheckResult,
    /// What comes after "it cannot be asked".
    pub(super) why: String,
    /// What the provider would have the client answered.
    pub(super) answer: Option<Box<Denial>>,
}

impl Failure {
    pub(super) fn new(result: CheckResult, why: String) -> Self {
        Self { result, why, answer: None }
    }

    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::new(CheckResult::Failed, why.into())
    }
}
