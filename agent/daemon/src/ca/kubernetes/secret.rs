//! A CA in a Secret: made once however many replicas start together, read again when it changes, its roots published in a
//! ConfigMap beside it.
//!
//! Promises never to replace a CA that is there, nor one that is gone while the service runs. Leaves to `identity` what a CA
//! is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::timeout;

use crate::identity::{CaError, CaFiles, with_causes};

/// The ConfigMap with the public roots, and the key in it. Agents mount it.
const ROOTS: &str = "ambit-ca-root";
const ROOTS_KEY: &str = "root-cert.pem";
/// Who writes the ConfigMap, as the API server remembers it.
const WRITER: &str = "ambit-ca";
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The Secret of a CA.
pub(in crate::ca) struct RootSecret {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    namespace: String,
    name: String,
}

/// Why the Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The API server could not be asked, or refuses.
    #[error("cannot {action} in namespace {namespace}: {problem}")]
    Api {
        /// What was tried, on what.
        action: String,
        /// Where.
        namespace: String,
        /// What the API server says, causes included.
        problem: String,
    },
    /// There is none any more.
    #[error(
        "the Secret {namespace}/{name} is gone; restore it, or restart all replicas to have a new CA made"
    )]
    Gone {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What it holds is no CA.
    #[error(transparent)]
    Content(#[from] CaError),
}

impl RootSecret {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// What messages call it, in the form of a path.
    pub(in crate::ca) fn place(&self) -> PathBuf {
        Path::new("Secret").join(&self.namespace).join(&self.name)
    }

    /// The files of the CA; where there is no Secret, of the one that `make` gives, put there unless another was quicker.
    pub(in crate::ca) async fn open(
        &self,
        make: impl FnOnce() -> Result<CaFiles, CaError>,
    ) -> Result<CaFiles, SecretError> {
        if let Some(files) = self.find().await? {
            return Ok(files);
        }
        let made = make()?;
        let secret = Secret {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            type_: Some("Opaque".to_owned()),
            data: Some(
                made.named().map(|(name, content)| (name.to_owned(), ByteString(content.to_vec()))).into(),
            ),
            ..Secret::default()
        };
        let action = || format!("create the Secret {}", self.name);
        let params = PostParams { field_manager: Some(WRITER.to_owned()), ..PostParams::default() };
        match timeout(TIMEOUT, self.secrets.create(&params, &secret)).await {
            Ok(Ok(_)) => {
                tracing::info!(secret = %self.place().display(), "a new CA was made");
                Ok(made)
            }
            // Another replica was quicker, and its CA is everybody's.
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => self.read().await,
            Ok(Err(error)) => Err(self.failed(action(), with_causes(&error))),
            Err(_) => Err(self.failed(action(), no_answer())),
        }
    }

    /// The files of the CA, which must be there.
    pub(in crate::ca) async fn read(&self) -> Result<CaFiles, SecretError> {
        let gone = || SecretError::Gone { namespace: self.namespace.clone(), name: self.name.clone() };
        self.find().await?.ok_or_else(gone)
    }

    async fn find(&self) -> Result<Option<CaFiles>, SecretError> {
        let action = || format!("read the Secret {}", self.name);
        let found = match timeout(TIMEOUT, self.secrets.get_opt(&self.name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(self.failed(action(), with_causes(&error))),
            Err(_) => return Err(self.failed(action(), no_answer())),
        };
        let Some(secret) = found else { return Ok(None) };
        let mut data = secret.data.unwrap_or_default();
        Ok(Some(CaFiles::from_named(&self.place(), |name| Ok(data.remove(name).map(|content| content.0)))?))
    }

    /// Makes `roots` (PEM) what the ConfigMap holds.
    pub(in crate::ca) async fn publish(&self, roots: &str) -> Result<(), SecretError> {
        let data = BTreeMap::from([(ROOTS_KEY, roots)]);
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ROOTS}, "data": data});
        let params = PatchParams::apply(WRITER).force();
        let patch = Patch::Apply(&map);
        let problem = match timeout(TIMEOUT, self.config_maps.patch(ROOTS, &params, &patch)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => with_causes(&error),
            Err(_) => no_answer(),
        };
        Err(self.failed(format!("write the ConfigMap {ROOTS}"), problem))
    }

    fn failed(&self, action: String, problem: String) -> SecretError {
        SecretError::Api { action, namespace: self.namespace.clone(), problem }
    }
}

fn no_answer() -> String {
    format!("no answer within {} s", TIMEOUT.as_secs())
}
