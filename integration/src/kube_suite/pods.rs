//! Pods of the tests: what they are to be, and how they are reached once they run.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{cluster::POD_IMAGE, load::ports};

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct Plan(Value);

impl Plan {
    /// A pod that runs `script` in a shell, on whatever node.
    pub fn script(name: &str, script: &str) -> Self {
        Self(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main",
                    "image": POD_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", script],
                }],
            },
        }))
    }

    /// A pod that does nothing until it is told to.
    pub fn client(name: &str) -> Self {
        Self::script(name, "exec sleep infinity")
    }

    /// A pod with an HTTP, an echo and a whoami server.
    pub fn server(name: &str) -> Self {
        let serve = |tool: &str, port: u16| format!("harness tool {tool}-server --listen [::]:{port}");
        let (http, whoami) = (serve("http", ports::HTTP), serve("whoami", ports::WHOAMI));
        let (bulk, echo) = (format!("iperf3 -s -p {}", ports::IPERF), serve("echo", ports::ECHO));
        Self::script(name, &format!("{http} & {whoami} & {bulk} & exec {echo}"))
    }

    /// Bound to a node by the scheduler.
    pub fn on(mut self, node: &str) -> Self {
        self.0["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        self
    }

    /// Run as this service account.
    pub fn account(mut self, name: &str) -> Self {
        self.0["spec"]["serviceAccountName"] = json!(name);
        self
    }

    /// With this label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][name] = json!(value);
        self
    }

    /// With a field of its container.
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.0["spec"]["containers"][0][field] = value;
        self
    }

    /// With a field of its specification.
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// The manifest.
    pub fn manifest(&self, namespace: &str) -> Value {
        let mut manifest = self.0.clone();
        manifest["metadata"]["namespace"] = json!(namespace);
        manifest
    }

    /// A Deployment of `replicas` such pods.
    pub fn deployment(&self, namespace: &str, replicas: usize) -> Value {
        let (name, labels) = (&self.0["metadata"]["name"], &self.0["metadata"]["labels"]);
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": labels["app"] } },
                "template": { "metadata": { "labels": labels }, "spec": self.0["spec"] },
            },
        })
    }
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The node it is on.
    pub node: String,
    /// Its UID.
    pub uid: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// How often its containers were started again.
    pub restarts: u64,
}

impl Pod {
    /// Reads what the API tells of a pod that has an address.
    pub(super) fn read(object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
        let name = text(&object["metadata"]["name"]);
        let ip = object["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        let containers = object["status"]["containerStatuses"].as_array();
        Ok(Self {
            namespace: text(&object["metadata"]["namespace"]),
            node: text(&object["spec"]["nodeName"]),
            uid: text(&object["metadata"]["uid"]),
            ip: ip.with_context(|| format!("pod {name} has no address: {}", object["status"]))?,
            restarts: containers.into_iter().flatten().filter_map(|c| c["restartCount"].as_u64()).sum(),
            name,
        })
    }
}
