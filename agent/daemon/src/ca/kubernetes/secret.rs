//! A CA in a Secret: made once however many replicas start together, read again when it changes.
//!
//! Promises never to replace a CA that is there, nor one that is gone while the service runs. It is made by server-side apply, as
//! RBAC can hold that to one name: a right to create Secrets would be one to create any. Leaves to `identity` what a CA is.

use std::path::{Path, PathBuf};

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
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
        // As a writer of its own: what another replica has written meanwhile is a conflict then, and stays.
        let params = PatchParams::apply(&format!("{WRITER}-{:016x}", rand::random::<u64>()));
        match timeout(TIMEOUT, self.secrets.patch(&self.name, &params, &Patch::Apply(&secret))).await {
            Ok(Ok(written)) => {
                tracing::info!(secret = %self.place().display(), "a new CA was made");
                self.files(written)
            }
            // Another replica was quicker, and its CA is everybody's.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => self.read().await,
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
        found.map(|secret| self.files(secret)).transpose()
    }

    fn files(&self, secret: Secret) -> Result<CaFiles, ObjectError> {
        let mut data = secret.data.unwrap_or_default();
        Ok(CaFiles::from_named(&self.place(), |name| Ok(data.remove(name).map(|content| content.0)))?)
    }

    fn failed(&self, action: String, problem: String) -> ObjectError {
        ObjectError::Api { action, namespace: self.namespace.clone(), problem }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use serde_json::Value;

    use super::*;
    use crate::{
        cluster::testing::{Call, scripted},
        identity::{BuiltinCa, Clock as _, SystemClock},
    };

    const PATH: &str = "/api/v1/namespaces/ambit-system/secrets/ambit-ca";

    fn made() -> Result<CaFiles, CaError> {
        BuiltinCa::make(Path::new("test"), &"td1".parse().unwrap(), SystemClock.now())
    }

    fn key(files: &CaFiles) -> String {
        BASE64.encode(files.named().into_iter().find(|(name, _)| *name == "ca-key.pem").unwrap().1)
    }

    fn absent(call: Call) {
        assert_eq!((call.method.as_str(), &*call.path), ("GET", PATH));
        call.refuse(404, "NotFound", "secrets \"ambit-ca\" not found");
    }

    /// A write that is no more than one by name, and gives way to another's.
    fn applied(call: &Call) -> Value {
        assert_eq!((call.method.as_str(), &*call.path), ("PATCH", PATH));
        assert!(
            call.asks_for("fieldManager").unwrap().starts_with("ambit-ca-")
                && call.asks_for("force").is_none()
        );
        call.body.clone()
    }

    #[tokio::test]
    async fn a_ca_is_made_under_one_name_and_another_replica_s_stays() {
        let (client, mut calls) = scripted("ambit-ca");
        let secret = RootSecret::new(client, "ambit-system", "ambit-ca");
        let server = tokio::spawn(async move {
            absent(calls.recv().await.unwrap());
            let call = calls.recv().await.unwrap();
            let written = applied(&call);
            call.answer(201, &written);
            absent(calls.recv().await.unwrap());
            let call = calls.recv().await.unwrap();
            assert_ne!(applied(&call)["data"], written["data"]);
            call.refuse(409, "Conflict", "Apply failed with 4 conflicts");
            calls.recv().await.unwrap().answer(200, &written);
            written["data"]["ca-key.pem"].as_str().unwrap().to_owned()
        });
        let first = secret.open(made).await.unwrap();
        let second = secret.open(made).await.unwrap();
        let expected = server.await.unwrap();
        assert_eq!((key(&first), key(&second)), (expected.clone(), expected));
    }
}
