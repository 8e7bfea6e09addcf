//! What an object of another cluster means in this one.
//!
//! Promises that it bears its cluster's name wherever it could be taken for one of this cluster: its own name, its UID, its node. A
//! slice speaks for the service of the same name here, unless that is each cluster's own.

use std::sync::Arc;

use ambit_core::{
    discovery::{Change as MeshChange, EndpointSlice, Pod, SliceEndpoint},
    model::ObjectName,
};

use super::{Change, Entry, Key, Stated};

/// Namespaces and services that each cluster has for itself, whatever other clusters call theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterLocal {
    /// All services of these.
    pub(crate) namespaces: Vec<String>,
    /// Namespace and name.
    pub(crate) services: Vec<(String, String)>,
}

impl ClusterLocal {
    fn has(&self, service: &ObjectName) -> bool {
        self.namespaces.iter().any(|namespace| **namespace == *service.namespace)
            || self
                .services
                .iter()
                .any(|(namespace, name)| (&**namespace, &**name) == (&*service.namespace, &*service.name))
    }
}

impl Entry {
    /// The same as an object of that cluster.
    pub(in crate::discovery) fn in_cluster(self, cluster: &Arc<str>, local: &ClusterLocal) -> Self {
        let there = |change| in_cluster(change, cluster, local);
        let stated = match self.stated {
            Stated::Good(change) => Stated::Good(there(change)),
            Stated::Strictest(change) => Stated::Strictest(there(change)),
            Stated::Bad(change) => Stated::Bad(change.map(there)),
        };
        let key = Key { kind: self.key.kind, name: self.key.name.in_cluster(cluster) };
        Self { key, stated, ..self }
    }
}

fn in_cluster(change: Change, cluster: &Arc<str>, local: &ClusterLocal) -> Change {
    let Change::Mesh(change) = change else { return change };
    Change::Mesh(match change {
        MeshChange::Namespace(namespace) => {
            MeshChange::RemoteNamespace { cluster: Arc::clone(cluster), namespace }
        }
        MeshChange::Pod(pod) => MeshChange::Pod(Arc::new(pod_in(Arc::unwrap_or_clone(pod), cluster))),
        MeshChange::EndpointSlice(slice) => {
            let slice = Arc::unwrap_or_clone(slice);
            MeshChange::EndpointSlice(Arc::new(slice_in(slice, cluster, local)))
        }
        other => other,
    })
}

fn pod_in(pod: Pod, cluster: &Arc<str>) -> Pod {
    Pod {
        name: pod.name.in_cluster(cluster),
        uid: qualified(cluster, &pod.uid),
        node: qualified(cluster, &pod.node),
        netns: None,
        ..pod
    }
}

fn slice_in(slice: EndpointSlice, cluster: &Arc<str>, local: &ClusterLocal) -> EndpointSlice {
    let endpoints = slice.endpoints.into_iter().map(|endpoint| SliceEndpoint {
        pod: endpoint.pod.map(|pod| pod.in_cluster(cluster)),
        node: endpoint.node.map(|node| qualified(cluster, &node)),
        ..endpoint
    });
    EndpointSlice {
        name: slice.name.in_cluster(cluster),
        service: slice.service.filter(|service| !local.has(service)),
        endpoints: endpoints.collect(),
        ..slice
    }
}

/// No name of Kubernetes has a slash. A pod that is on no node yet stays so.
fn qualified(cluster: &str, name: &str) -> Arc<str> {
    if name.is_empty() { name.into() } else { format!("{cluster}/{name}").into() }
}

#[cfg(test)]
mod tests {
    use ambit_core::discovery::Settings;
    use serde_json::json;

    use super::*;
    use crate::discovery::kinds::Kind;

    fn read(kind: Kind, object: &serde_json::Value) -> (String, MeshChange) {
        let local = ClusterLocal {
            namespaces: vec!["kube-system".into()],
            services: vec![("default".into(), "kubernetes".into())],
        };
        let entry =
            Entry::read(kind, object, &Settings::default()).unwrap().in_cluster(&"west".into(), &local);
        let Stated::Good(Change::Mesh(change)) = entry.stated else { panic!("{entry:?}") };
        (entry.key.name.to_string(), change)
    }

    #[test]
    fn an_object_bears_the_name_of_its_cluster() {
        let (name, change) = read(
            Kind::Pod,
            &json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": {"nodeName": "n1"}}),
        );
        let MeshChange::Pod(pod) = change else { panic!() };
        assert_eq!(
            (&*name, &*pod.name.to_string(), &*pod.uid, &*pod.node),
            ("west:shop/web", "west:shop/web", "west/u", "west/n1")
        );
        assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
        let (_, change) = read(Kind::Namespace, &json!({"metadata": {"name": "shop"}}));
        assert!(matches!(change, MeshChange::RemoteNamespace { cluster, .. } if &*cluster == "west"));
    }

    #[test]
    fn what_each_cluster_has_for_itself_stays_apart() {
        for (namespace, service, shared) in [
            ("shop", "web", true),
            ("shop", "kubernetes", true),
            ("default", "kubernetes", false),
            ("kube-system", "kube-dns", false),
        ] {
            let slice = json!({
                "metadata": {"name": "s", "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.0.1"], "nodeName": "n1",
                    "targetRef": {"kind": "Pod", "namespace": namespace, "name": "p"}}],
                "ports": [{"name": "http", "port": 80}],
            });
            let (_, change) = read(Kind::EndpointSlice, &slice);
            let MeshChange::EndpointSlice(slice) = change else { panic!() };
            assert_eq!(slice.service.is_some(), shared, "{namespace}/{service}");
            assert_eq!(slice.endpoints[0].node.as_deref(), Some("west/n1"));
            assert!(slice.endpoints[0].pod.as_ref().is_some_and(|pod| pod.cluster.is_some()));
        }
    }
}
