//! Tokens whose signatures have been verified, so that a client's next request costs a hash.
//!
//! Promises that a token is recalled only by the rule and the very keys that it was found good by, and a bound on what is kept.
//! Whether its time is over is for whoever recalls it to ask.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use ambit_core::policy::{Claims, JwtRule};
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderName, HeaderValue};

use super::{
    keys::KeySet,
    passing,
    token::{Times, Unverified},
};

/// Bytes of tokens in each of the two generations.
const GENERATION: usize = 1024 * 1024;

/// What a good token says.
#[derive(Clone, Debug)]
pub(super) struct Good {
    pub(super) claims: Arc<Claims>,
    pub(super) times: Times,
    /// The headers that claims go on in.
    pub(super) outputs: Arc<[(HeaderName, HeaderValue)]>,
}

impl Good {
    /// Of a token whose signature was verified by the keys of `rule`.
    pub(super) fn new(token: Unverified<'_>, rule: &JwtRule) -> Self {
        let outputs = passing::outputs(rule, &token.claims).into();
        let claims = Claims::new(token.claims).with_lists(&rule.space_delimited);
        Self { claims: Arc::new(claims), times: token.times, outputs }
    }
}

/// The verified tokens. What was not asked for while as much again was added is forgotten.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Name, Entry>,
    old: HashMap<Name, Entry>,
    /// Bytes of the tokens in `young`.
    bytes: usize,
}

/// A token's SHA-256, and a hash of what tells its rule from others.
type Name = ([u8; 32], u64);

#[derive(Clone, Debug)]
struct Entry {
    rule: Arc<JwtRule>,
    /// Weak: keys that are gone are not kept for it, nor can others take their place in memory.
    keys: Weak<KeySet>,
    good: Good,
    bytes: usize,
}

impl Entry {
    fn is_by(&self, rule: &Arc<JwtRule>, keys: &Arc<KeySet>) -> bool {
        std::ptr::eq(self.keys.as_ptr(), Arc::as_ptr(keys))
            && (Arc::ptr_eq(&self.rule, rule) || self.rule == *rule)
    }
}

impl Verified {
    /// What the token says, if these keys have verified it for this rule.
    pub(super) fn recall(&self, token: &str, rule: &Arc<JwtRule>, keys: &Arc<KeySet>) -> Option<Good> {
        let name = name(token, rule);
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = generations.young.get(&name) {
            return entry.is_by(rule, keys).then(|| entry.good.clone());
        }
        let entry = generations.old.remove(&name).filter(|entry| entry.is_by(rule, keys))?;
        let good = entry.good.clone();
        generations.add(name, entry);
        Some(good)
    }

    /// Keeps what a token says that these keys have verified for this rule.
    pub(super) fn remember(&self, token: &str, rule: &Arc<JwtRule>, keys: &Arc<KeySet>, good: &Good) {
        // Claims take a few times as much as their text.
        let bytes = token.len() + size_of::<Entry>();
        let entry = Entry { rule: rule.clone(), keys: Arc::downgrade(keys), good: good.clone(), bytes };
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.add(name(token, rule), entry);
    }
}

impl Generations {
    fn add(&mut self, name: Name, entry: Entry) {
        if self.bytes + entry.bytes > GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += entry.bytes;
        if let Some(before) = self.young.insert(name, entry) {
            self.bytes -= before.bytes;
        }
    }
}

fn name(token: &str, rule: &JwtRule) -> Name {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    // Rules of one issuer differ in their audiences, if in anything.
    let mut hasher = DefaultHasher::new();
    (&rule.issuer, &rule.audiences).hash(&mut hasher);
    (hash, hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(audience: &str) -> Arc<JwtRule> {
        Arc::new(JwtRule { audiences: vec![audience.into()], ..crate::jwt::tests::rule("i") })
    }

    fn good() -> Good {
        Good {
            claims: Arc::new(Claims::new(serde_json::Map::new())),
            times: Unverified::parse("eyJhbGciOiJSUzI1NiJ9.e30.").unwrap().times,
            outputs: Arc::new([]),
        }
    }

    #[test]
    fn tokens_are_recalled_by_the_rule_and_keys_that_they_were_good_by() {
        let keys = || Arc::new(KeySet::parse(crate::jwt::tests::SET.as_bytes()).unwrap());
        let (verified, first, second, a, b) = (Verified::default(), keys(), keys(), rule("a"), rule("b"));
        verified.remember("t", &a, &first, &good());
        assert!(verified.recall("t", &a, &first).is_some());
        assert!(verified.recall("t", &rule("a"), &first).is_some(), "an equal rule");
        assert!(verified.recall("t", &b, &first).is_none());
        assert!(verified.recall("t", &a, &second).is_none(), "the keys were fetched again");
        assert!(verified.recall("u", &a, &first).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_used_stays() {
        let keys = Arc::new(KeySet::parse(crate::jwt::tests::SET.as_bytes()).unwrap());
        let (verified, rule) = (Verified::default(), rule("a"));
        let token = |number: usize| format!("{number:04000}");
        for number in 0..2_000 {
            verified.remember(&token(number), &rule, &keys, &good());
            assert!(verified.recall(&token(0), &rule, &keys).is_some(), "{number}");
        }
        assert!(verified.recall(&token(1), &rule, &keys).is_none());
        let generations = verified.0.lock().unwrap();
        let bytes = |map: &HashMap<Name, Entry>| map.values().map(|entry| entry.bytes).sum::<usize>();
        assert_eq!(bytes(&generations.young), generations.bytes);
        assert!(bytes(&generations.old) <= GENERATION && generations.bytes <= GENERATION);
    }
}
