//! The Kubernetes objects that the CA reads and writes: as much of them as counts.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize};

/// `authentication.k8s.io/v1` TokenReview.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TokenReview {
    api_version: String,
    kind: String,
    spec: ReviewSpec,
    #[serde(skip_serializing)]
    status: ReviewStatus,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct ReviewSpec {
    token: String,
    audiences: Vec<String>,
}

impl std::fmt::Debug for ReviewSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReviewSpec").field("audiences", &self.audiences).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ReviewStatus {
    authenticated: bool,
    #[serde(deserialize_with = "or_nothing")]
    audiences: Vec<String>,
    error: String,
    user: User,
}

/// Whom a token belongs to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    username: String,
    #[serde(deserialize_with = "or_nothing")]
    extra: HashMap<String, Vec<String>>,
}

impl TokenReview {
    pub(super) fn request(token: &str, audience: &str) -> Self {
        Self {
            api_version: "authentication.k8s.io/v1".into(),
            kind: "TokenReview".into(),
            spec: ReviewSpec { token: token.into(), audiences: vec![audience.into()] },
            status: ReviewStatus::default(),
        }
    }

    /// The user, if the API server accepts the token and says that it is for this audience. An answer without audiences
    /// comes from a server that does not look at them.
    pub(super) fn accepted(self, audience: &str) -> Option<User> {
        let status = self.status;
        let good = status.authenticated
            && status.error.is_empty()
            && status.audiences.iter().any(|found| found == audience);
        good.then_some(status.user)
    }
}

impl User {
    /// Namespace and name, if it is a service account.
    pub(super) fn service_account(&self) -> Option<(String, String)> {
        let (namespace, name) = self.username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        (is_name(namespace) && is_name(name)).then(|| (namespace.to_owned(), name.to_owned()))
    }

    /// Name and UID of the pod that the token is bound to.
    pub(super) fn pod(&self) -> Option<(&str, &str)> {
        let only = |key: &str| match self.extra.get(key).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.as_str()),
            _ => None,
        };
        let name = only("authentication.kubernetes.io/pod-name").filter(|name| is_name(name))?;
        Some((name, only("authentication.kubernetes.io/pod-uid")?))
    }
}

/// `v1` PodList.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodList {
    pub(super) metadata: ListMeta,
    #[serde(deserialize_with = "or_nothing")]
    pub(super) items: Vec<Pod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ListMeta {
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// `v1` Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ObjectMeta {
    pub(super) namespace: String,
    pub(super) uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: String,
    pub(super) service_account_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
}

impl Pod {
    /// Whether its containers may still run. Those of a pod that succeeded do not either.
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.status.phase.as_str(), "Failed" | "Succeeded")
    }
}

/// Go writes an empty list as `null` at times.
fn or_nothing<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Whether `text` is a name as Kubernetes has it, and so can stand in a path.
pub(super) fn is_name(text: &str) -> bool {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(legal) && !text.starts_with('.')
}

/// `text` as it can stand in a query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
