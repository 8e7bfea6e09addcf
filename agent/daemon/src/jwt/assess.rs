//! A token as somebody asks about it, without a request and without fetching keys: what would become of it.

use std::{sync::Arc, time::SystemTime};

use ambit_core::policy::{Claims, JwtRule, Keys};
use data_encoding::BASE64URL_NOPAD;

use super::{failure::Failure, keys::KeySet, token::Unverified, unix, verified::Good};

/// What would become of a token.
#[derive(Debug)]
pub(crate) enum Assessed {
    /// It counts.
    Good {
        claims: Arc<Claims>,
        /// The issuer of the rule by which it does.
        issuer: Box<str>,
        /// By the keys that stand in the rule; else nobody has looked at the signature.
        verified: bool,
    },
    /// It is refused.
    Bad { status: u16, text: &'static str },
}

/// Judges a token, or the claims of one as a JSON object, by the rules for a pod, as if it stood where each of them looks for one.
pub(crate) fn assess(rules: &[Arc<JwtRule>], token: &str, now: SystemTime) -> Assessed {
    let token = token.trim();
    let only_claims = token.starts_with('{');
    let token = if only_claims { with_claims(token) } else { token.to_owned() };
    let mut worst = Failure::Issuer;
    for rule in rules {
        match by_rule(rule, &token, only_claims, unix(now)) {
            Ok((good, verified)) => {
                return Assessed::Good { claims: good.claims, issuer: rule.issuer.clone(), verified };
            }
            Err(failure) if matches!(worst, Failure::Issuer) => worst = failure,
            Err(_) => {}
        }
    }
    Assessed::Bad { status: worst.status().as_u16(), text: worst.text() }
}

fn by_rule(rule: &JwtRule, token: &str, only_claims: bool, now: u64) -> Result<(Good, bool), Failure> {
    let unverified = Unverified::parse(token)?;
    unverified.check(rule, now)?;
    let verified = match &rule.keys {
        Keys::Inline(keys) if !only_claims => {
            let keys = KeySet::parse(keys.as_bytes()).map_err(|_| Failure::KeysUnavailable)?;
            keys.verify(&unverified)?;
            true
        }
        _ => false,
    };
    Ok((Good::new(unverified, rule), verified))
}

/// A token with these claims that nobody has signed.
fn with_claims(json: &str) -> String {
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    format!("{}.{}.", part(r#"{"alg":"RS256"}"#), part(json))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::rule, *};

    #[test]
    fn claims_are_taken_as_those_of_a_good_token_of_that_issuer() {
        let rules = [Arc::new(rule("https://a.example"))];
        let assessed = |claims: &str| assess(&rules, claims, SystemTime::UNIX_EPOCH);
        let Assessed::Good { claims, issuer, verified } =
            assessed(r#" {"iss": "https://a.example", "sub": "joe", "scope": "read write"}"#)
        else {
            panic!("refused");
        };
        assert_eq!((&*issuer, verified), ("https://a.example", false));
        assert_eq!(claims.get("scope").unwrap(), &serde_json::json!(["read", "write"]));
        for (claims, expected) in [
            (r#"{"iss": "https://b.example"}"#, Failure::Issuer),
            (r#"{"iss": "https://a.example", "nbf": 9999999999}"#, Failure::NotYetValid { soon: false }),
            ("{", Failure::PayloadJson),
            ("abc", Failure::Form),
        ] {
            let Assessed::Bad { status, text } = assessed(claims) else { panic!("{claims} is good") };
            assert_eq!((status, text), (expected.status().as_u16(), expected.text()), "{claims}");
        }
    }
}
