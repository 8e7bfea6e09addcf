//! The CA's roots in a ConfigMap, which agents mount. It is put right whatever others write into it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    api::TIMEOUT,
    object::{ObjectError, WRITER, no_answer},
};
use crate::cluster::sentence;

/// The key in it.
const KEY: &str = "root-cert.pem";

/// The ConfigMap.
pub(in crate::ca) struct RootConfigMap {
    config_maps: Api<ConfigMap>,
    namespace: String,
    name: String,
}

impl RootConfigMap {
    pub(super) fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            config_maps: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Makes `roots` (PEM) what it holds.
    pub(in crate::ca) async fn publish(&self, roots: &str) -> Result<(), ObjectError> {
        let data = BTreeMap::from([(KEY, roots)]);
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self.name}, "data": data});
        let params = PatchParams::apply(WRITER).force();
        let patch = Patch::Apply(&map);
        let problem = match timeout(TIMEOUT, self.config_maps.patch(&self.name, &params, &patch)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => sentence(&error),
            Err(_) => no_answer(),
        };
        let action = format!("write the ConfigMap {}", self.name);
        Err(ObjectError::Api { action, namespace: self.namespace.clone(), problem })
    }
}
