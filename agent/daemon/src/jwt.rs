//! Tokens of end users (RFC 7519), judged by the issuers that RequestAuthentications name, and the keys of those issuers.
//!
//! Promises that a request never waits for keys: they are fetched beside the way, and a token whose issuer's keys are not there is
//! refused. Leaves to policy who may do what with a good token.

mod assess;
mod failure;
mod fetch;
mod issuers;
mod keys;
mod passing;
mod places;
mod refresh;
mod token;
mod tried;
mod verified;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::policy::{Claims, JwtRule};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};

pub(crate) use self::{
    assess::{Assessed, assess},
    fetch::{Blocked, Fetching},
    issuers::IssuerStatus,
    tried::try_token,
};
use self::{
    failure::Failure,
    issuers::Issuers,
    keys::KeySet,
    token::Unverified,
    verified::{Good, Verified},
};
use crate::telemetry::Telemetry;

/// Tokens that a rule judges in one request. More are no client's way to send one.
const MAX_TOKENS: usize = 16;
/// A longer token is not read.
const MAX_TOKEN: usize = 64 * 1024;

/// How keys are fetched, and how often.
#[derive(Clone, Debug)]
pub(crate) struct JwksSettings {
    /// The way to issuers.
    pub(crate) fetching: Fetching,
    /// How old keys get before they are fetched again.
    pub(crate) refresh: Duration,
}

/// Judges tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tokens(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    issuers: Issuers,
    verified: Verified,
    telemetry: Telemetry,
}

/// Why a request is refused for its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadToken {
    /// 401, or 403 for the wrong audience.
    pub(crate) status: StatusCode,
    /// The body of the answer: what is wrong with it.
    pub(crate) text: &'static str,
    /// The value of `www-authenticate` (RFC 6750, section 3).
    pub(crate) challenge: HeaderValue,
    /// The same as `text` in one word, as metrics and logs have it.
    pub(crate) reason: &'static str,
}

impl BadToken {
    fn new(failure: Failure, head: &Parts) -> Self {
        Self {
            status: failure.status(),
            text: failure.text(),
            challenge: passing::challenge(head),
            reason: failure.label(),
        }
    }

    /// The status in which gRPC tells it: 16 is UNAUTHENTICATED, 7 PERMISSION_DENIED.
    pub(crate) fn grpc_status(&self) -> u16 {
        if self.status == StatusCode::FORBIDDEN { 7 } else { 16 }
    }
}

impl Default for JwksSettings {
    fn default() -> Self {
        Self { fetching: Fetching::default(), refresh: refresh::INTERVAL }
    }
}

impl Default for Tokens {
    /// With keys that stand in rules only, until somebody follows issuers.
    fn default() -> Self {
        Self::new(JwksSettings::default(), Telemetry::new())
    }
}

impl Tokens {
    /// Fetches nothing yet.
    pub(crate) fn new(settings: JwksSettings, telemetry: Telemetry) -> Self {
        let issuers = Issuers::new(settings, telemetry.clone());
        Self(Arc::new(Shared { issuers, verified: Verified::default(), telemetry }))
    }

    /// Has the keys of the issuers of these rules fetched and kept fresh, and of no others; tasks do it. Keys that are there stay
    /// in use. Must be called in a tokio runtime.
    pub(crate) fn follow(&self, wanted: impl IntoIterator<Item = Arc<JwtRule>>) {
        self.0.issuers.follow(wanted);
    }

    /// Whether every issuer that is followed has been asked for its keys at least once, with whatever result.
    pub(crate) fn settled(&self) -> bool {
        self.0.issuers.settled()
    }

    /// The issuers that are followed, by name.
    pub(crate) fn issuers(&self) -> Vec<IssuerStatus> {
        self.0.issuers.statuses()
    }

    /// Judges the tokens of a request by `rules`, and changes its head for who comes next: tokens that are not passed on go, and
    /// headers that only this agent may set. `None` where it has no token.
    pub(crate) fn judge(
        &self,
        rules: &[Arc<JwtRule>],
        head: &mut Parts,
    ) -> Result<Option<Arc<Claims>>, BadToken> {
        self.judge_at(rules, head, SystemTime::now())
    }

    fn judge_at(
        &self,
        rules: &[Arc<JwtRule>],
        head: &mut Parts,
        now: SystemTime,
    ) -> Result<Option<Arc<Claims>>, BadToken> {
        // First: nobody but this agent may say what a token said, in whatever request.
        for rule in rules {
            passing::strip(rule, &mut head.headers);
        }
        if rules.is_empty() || is_preflight(head) {
            return Ok(None);
        }
        match self.first_good(rules, head, unix(now)) {
            Ok(None) => Ok(None),
            Ok(Some((rule, good, payload))) => {
                passing::pass_on(rule, &good, &payload, head);
                Ok(Some(good.claims))
            }
            Err(failure) => {
                self.0.telemetry.token_refused(failure.label(), failure.is_clock_skew());
                Err(BadToken::new(failure, head))
            }
        }
    }

    /// The first rule by which all tokens in its places are good, with what the last of them says. Where there is none, the
    /// failure that says most, unless no rule finds a token.
    fn first_good<'r>(
        &self,
        rules: &'r [Arc<JwtRule>],
        head: &Parts,
        now: u64,
    ) -> Result<Option<(&'r JwtRule, Good, String)>, Failure> {
        let mut worst = None;
        for rule in rules {
            let found = places::tokens(rule, head);
            let Some(last) = found.last() else { continue };
            match self.all_good(rule, &found, now) {
                Ok(good) => return Ok(Some((rule, good, payload_of(last).to_owned()))),
                // A token of another issuer is bad by this rule without being bad.
                Err(failure) if matches!(worst, None | Some(Failure::Issuer)) => worst = Some(failure),
                Err(_) => {}
            }
        }
        worst.map_or(Ok(None), Err)
    }

    fn all_good(&self, rule: &Arc<JwtRule>, found: &[places::Found<'_>], now: u64) -> Result<Good, Failure> {
        let mut last = Err(Failure::Form);
        if found.len() > MAX_TOKENS {
            return last;
        }
        for token in found {
            last = Ok(self.verify(rule, token, now)?);
        }
        last
    }

    fn verify(&self, rule: &Arc<JwtRule>, token: &str, now: u64) -> Result<Good, Failure> {
        if token.len() > MAX_TOKEN {
            return Err(Failure::Form);
        }
        let issuer = self.0.issuers.of(rule);
        let keys: Option<Arc<KeySet>> = issuer.keys();
        if let Some(good) = keys.as_ref().and_then(|keys| self.0.verified.recall(token, rule, keys)) {
            good.times.check(now)?;
            return Ok(good);
        }
        let unverified = Unverified::parse(token)?;
        unverified.check(rule, now)?;
        let Some(keys) = keys else {
            issuer.wish();
            return Err(Failure::KeysUnavailable);
        };
        // The issuer may have a new key, even under an old name.
        keys.verify(&unverified).inspect_err(|_| issuer.wish())?;
        let good = Good::new(unverified, rule);
        self.0.verified.remember(token, rule, &keys, &good);
        Ok(good)
    }
}

/// What a token says, as it stands in it.
fn payload_of(token: &str) -> &str {
    token.split('.').nth(1).unwrap_or_default()
}

/// A question of a browser before a request across origins, which never has a token (Fetch standard, "CORS-preflight request").
fn is_preflight(head: &Parts) -> bool {
    let has = |name| head.headers.get(name).is_some_and(|value| !value.is_empty());
    head.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
