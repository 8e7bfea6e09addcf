//! A CA in a Secret: made once however many replicas start together, read again when it changes.
//!
//! Promises never to replace a CA that is there, nor one that is gone while the service runs. Leaves to `identity` what a CA
//! is.

use std::path::{Path, PathBuf};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use tokio::time::timeout;

use super::{
    api::TIMEOUT,
    object::{ObjectError, WRITER, no_answer},
};
use crate::{
    cluster::sentence,
    identity::{CaError, CaFiles},
};

/// The Secret of a CA.
pub(in crate::ca) struct RootSecret {
    secrets: Api<Secret>,
    namespace: String,
    name: String,
}

impl RootSecret {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            secrets: Api::namespaced(client, namespace),
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
    ) -> Result<CaFiles, ObjectError> {
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
            Ok(Err(error)) => Err(self.failed(action(), sentence(&error))),
            Err(_) => Err(self.failed(action(), no_answer())),
        }
    }

    /// The files of the CA, which must be there.
    pub(in crate::ca) async fn read(&self) -> Result<CaFiles, ObjectError> {
        let gone = || ObjectError::Gone { namespace: self.namespace.clone(), name: self.name.clone() };
        self.find().await?.ok_or_else(gone)
    }

    async fn find(&self) -> Result<Option<CaFiles>, ObjectError> {
        let action = || format!("read the Secret {}", self.name);
        let found = match timeout(TIMEOUT, self.secrets.get_opt(&self.name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(self.failed(action(), sentence(&error))),
            Err(_) => return Err(self.failed(action(), no_answer())),
        };
        let Some(secret) = found else { return Ok(None) };
        let mut data = secret.data.unwrap_or_default();
        Ok(Some(CaFiles::from_named(&self.place(), |name| Ok(data.remove(name).map(|content| content.0)))?))
    }

    fn failed(&self, action: String, problem: String) -> ObjectError {
        ObjectError::Api { action, namespace: self.namespace.clone(), problem }
    }
}
