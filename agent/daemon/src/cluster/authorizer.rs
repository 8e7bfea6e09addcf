//! Whether the owner of a bearer token may `get` a path that is no resource, as the cluster's RBAC has it (TokenReview and
//! SubjectAccessReview, authentication.k8s.io/v1 and authorization.k8s.io/v1).
//!
//! Promises to grant nothing that the API server does not confirm, and that guessing asks it ten times a second at most. A grant is
//! remembered for a minute.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep_until, timeout};

use super::sentence;

/// How long a grant is believed.
const GRANTED: Duration = Duration::from_secs(60);
/// Grants remembered. Beyond it they are all forgotten, and learned again by asking.
const MAX_GRANTS: usize = 64;
/// How long the API server may take for both answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// A token that grants nothing takes this long at least, one after another.
const PACE: Duration = Duration::from_millis(100);
/// No token is longer.
const MAX_TOKEN: usize = 16 * 1024;

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner may.
    Granted,
    /// It is nobody's.
    Unknown,
    /// Its owner may not.
    Forbidden,
}

/// The API server did not say.
#[derive(Debug, thiserror::Error)]
#[error("the API server: {0}")]
pub(crate) struct Unavailable(String);

/// Asks about one path.
pub(crate) struct Authorizer {
    client: Client,
    path: &'static str,
    granted: Mutex<HashMap<[u8; 32], Instant>>,
    /// Whoever holds it asks.
    turn: tokio::sync::Mutex<()>,
}

impl Authorizer {
    /// Asks nothing yet.
    pub(crate) fn new(client: Client, path: &'static str) -> Self {
        Self { client, path, granted: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// What `token` is good for.
    pub(crate) async fn access(&self, token: &str) -> Result<Access, Unavailable> {
        if token.len() > MAX_TOKEN {
            return Ok(Access::Unknown);
        }
        let hash = hash(token);
        if self.is_granted(&hash) {
            return Ok(Access::Granted);
        }
        let _turn = self.turn.lock().await;
        // Another has asked about the same token meanwhile.
        if self.is_granted(&hash) {
            return Ok(Access::Granted);
        }
        let begun = Instant::now();
        let answer = timeout(PATIENCE, self.ask(token)).await;
        let answer = answer.unwrap_or_else(|_| Err(Unavailable("no answer in time".to_owned())));
        if let Ok(Access::Granted) = answer {
            self.remember(hash);
        } else {
            sleep_until(begun + PACE).await;
        }
        answer
    }

    async fn ask(&self, token: &str) -> Result<Access, Unavailable> {
        let unavailable = |error: kube::Error| Unavailable(sentence(&error));
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &review).await.map_err(unavailable)?;
        let status = reviewed.status.filter(|status| status.authenticated == Some(true));
        let Some(user) = status.and_then(|status| status.user) else { return Ok(Access::Unknown) };
        let review = SubjectAccessReview { spec: self.question(user), ..SubjectAccessReview::default() };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let reviewed = reviews.create(&PostParams::default(), &review).await.map_err(unavailable)?;
        let allowed = reviewed.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        Ok(if allowed { Access::Granted } else { Access::Forbidden })
    }

    fn question(&self, user: UserInfo) -> SubjectAccessReviewSpec {
        SubjectAccessReviewSpec {
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(self.path.to_owned()),
                verb: Some("get".to_owned()),
            }),
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            ..SubjectAccessReviewSpec::default()
        }
    }

    fn is_granted(&self, hash: &[u8; 32]) -> bool {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.get(hash).is_some_and(|at| at.elapsed() < GRANTED)
    }

    fn remember(&self, hash: [u8; 32]) {
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if granted.len() >= MAX_GRANTS {
            granted.clear();
        }
        granted.insert(hash, Instant::now());
    }
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::cluster::testing::{Call, scripted};

    const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
    const ACCESSES: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

    fn answer(mut call: Call, status: Value) {
        let mut object = call.body.take();
        object["status"] = status;
        call.answer(201, &object);
    }

    /// An API server that knows two tokens; tells how often it was asked about one.
    async fn serve(mut calls: UnboundedReceiver<Call>) -> usize {
        let mut reviews = 0;
        while let Some(call) = calls.recv().await {
            if call.path == TOKENS {
                reviews += 1;
                let status = match call.body["spec"]["token"].as_str() {
                    Some("broken") => {
                        call.refuse(500, "InternalError", "broken");
                        continue;
                    }
                    Some(name @ ("prometheus" | "web")) => {
                        json!({"authenticated": true, "user": {"username": name, "groups": ["g"], "extra": {"k": ["v"]}}})
                    }
                    _ => json!({"authenticated": false, "user": {"username": "prometheus"}}),
                };
                answer(call, status);
            } else {
                assert_eq!(call.path, ACCESSES);
                let spec = call.body["spec"].clone();
                assert_eq!(spec["nonResourceAttributes"], json!({"path": "/metrics", "verb": "get"}));
                assert_eq!((&spec["groups"], &spec["extra"]), (&json!(["g"]), &json!({"k": ["v"]})));
                answer(call, json!({"allowed": spec["user"] == "prometheus"}));
            }
        }
        reviews
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_rbac_allows_is_granted_and_a_grant_is_remembered() {
        let (client, calls) = scripted("none");
        let server = tokio::spawn(serve(calls));
        let authorizer = Authorizer::new(client, "/metrics");
        for (token, expected) in
            [("prometheus", Access::Granted), ("web", Access::Forbidden), ("guess", Access::Unknown)]
        {
            assert_eq!(authorizer.access(token).await.unwrap(), expected, "{token}");
        }
        assert!(authorizer.access("broken").await.is_err(), "granted without an answer");
        assert_eq!(authorizer.access(&"a".repeat(MAX_TOKEN + 1)).await.unwrap(), Access::Unknown);
        for _ in 0..20 {
            authorizer.access("prometheus").await.unwrap();
        }
        tokio::time::advance(GRANTED).await;
        authorizer.access("prometheus").await.unwrap();
        drop(authorizer);
        assert_eq!(server.await.unwrap(), 5, "four tokens, and one again after a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_come_one_after_another() {
        let (client, calls) = scripted("none");
        let server = tokio::spawn(serve(calls));
        let authorizer = Arc::new(Authorizer::new(client, "/metrics"));
        let begun = Instant::now();
        let mut guesses = tokio::task::JoinSet::new();
        for guess in 0..30 {
            let authorizer = authorizer.clone();
            guesses.spawn(async move { authorizer.access(&format!("guess-{guess}")).await.unwrap() });
        }
        assert!(guesses.join_all().await.iter().all(|access| *access == Access::Unknown));
        assert!(begun.elapsed() >= 30 * PACE, "{:?}", begun.elapsed());
        drop(authorizer);
        assert_eq!(server.await.unwrap(), 30);
    }
}
