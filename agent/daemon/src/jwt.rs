//! Tokens of end users (RFC 7519), judged by the issuers that RequestAuthentications name, and the keys of those issuers.
//!
//! Promises that a request never waits for keys: they are fetched beside the way, and a token whose issuer's keys are not there is
//! refused. Leaves to policy who may do what with a good token.

use std::sync::Arc;

use ambit_core::policy::{Claims, JwtRule};
use http::{StatusCode, request::Parts};

/// Judges tokens. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tokens(());

/// Why a request is refused for its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadToken {
    /// 401, or 403 for the wrong audience.
    pub(crate) status: StatusCode,
    /// The body of the answer: what is wrong with it.
    pub(crate) text: &'static str,
}

impl Tokens {
    /// Judges the tokens of a request by `rules`, and changes its head for who comes next: tokens that are not passed on go, and
    /// headers that only this agent may set. `None` where it has no token.
    pub(crate) fn judge(
        &self,
        rules: &[Arc<JwtRule>],
        head: &mut Parts,
    ) -> Result<Option<Arc<Claims>>, BadToken> {
        let _ = (rules, head);
        Err(BadToken { status: StatusCode::UNAUTHORIZED, text: "Jwt verification fails" })
    }
}
