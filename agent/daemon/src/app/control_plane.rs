//! Whether the certificate service's own pods are in the mesh. They must not be: agents are outside of it, and ask them for what it
//! needs. Only tells; who is in the mesh is the labels' to say.

use std::sync::Arc;

use ambit_core::{
    discovery::Mesh,
    model::{ObjectName, Workload},
};

use crate::config::IssuerConfig;

/// The Service in the cluster that certificates are asked of; none if the issuer is something else.
pub(super) fn issuing_service(issuer: &IssuerConfig) -> Option<ObjectName> {
    let IssuerConfig::Istio { service, .. } = issuer else { return None };
    named(&service.host)
}

/// Those of this node's pods in the mesh that serve it.
pub(super) fn caught<'a>(
    mesh: &'a Mesh,
    service: &ObjectName,
    node: &'a str,
) -> impl Iterator<Item = &'a Arc<Workload>> {
    // A Service without a selector has pods that nobody knows.
    let selector = mesh.service_selector(service).filter(|selector| !selector.is_empty());
    let namespace = service.namespace.clone();
    mesh.pods_on(node).filter(move |pod| {
        let selected = |selector: &ambit_core::model::Labels| {
            selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        pod.enrolled && pod.name.namespace == namespace && selector.is_some_and(selected)
    })
}

/// What is to be done about one.
pub(super) fn advice(service: &ObjectName) -> String {
    format!(
        "serves {service}, which agents ask for certificates, and is in the mesh, where they may be refused: label it so that it \
         stays out"
    )
}

/// The Service that a name in the cluster's DNS is of.
fn named(host: &str) -> Option<ObjectName> {
    let mut parts = host.trim_end_matches('.').split('.');
    let (name, namespace, kind) = (parts.next()?, parts.next()?, parts.next()?);
    (kind == "svc").then(|| ObjectName::new(namespace, name))
}

#[cfg(test)]
mod tests {
    use ambit_core::discovery::{Change, Namespace, Pod, Service, Settings};

    use super::*;

    #[test]
    fn services_are_told_from_other_hosts() {
        let istiod = Some(ObjectName::new("istio-system", "istiod"));
        for host in ["istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local."] {
            assert_eq!(named(host), istiod, "{host}");
        }
        for host in ["istiod", "ca.example.com", "192.0.2.1", "::1", "a.b"] {
            assert_eq!(named(host), None, "{host}");
        }
    }

    #[test]
    fn only_pods_in_the_mesh_that_serve_certificates_are_caught() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let service = ObjectName::new("istio-system", "istiod");
        let mut mesh = Mesh::new(Settings::default());
        mesh.apply(Change::Namespace(Arc::new(Namespace {
            name: "istio-system".into(),
            labels: labels(&[("ambit.dev/dataplane", "enabled")]),
            http_telemetry: None,
        })));
        mesh.apply(Change::Service(Arc::new(Service {
            name: service.clone(),
            created: None,
            cluster_ips: vec![],
            external_ips: vec![],
            ports: vec![],
            selector: labels(&[("app", "istiod")]),
            session_affinity: None,
            local_only: false,
            external_local: false,
            publish_not_ready: false,
            distribution: None,
            source_ranges: Vec::new(),
            balancer_ips: Vec::new(),
        })));
        for (at, (name, own)) in [
            ("istiod-1", &[("app", "istiod")][..]),
            ("istiod-2", &[("app", "istiod"), ("ambit.dev/dataplane", "disabled")]),
            ("kiali-1", &[("app", "kiali")]),
        ]
        .into_iter()
        .enumerate()
        {
            mesh.apply(Change::Pod(Arc::new(Pod {
                uid: name.into(),
                created: None,
                identity: "spiffe://cluster.local/ns/istio-system/sa/x".parse().unwrap(),
                name: ObjectName::new("istio-system", name),
                node: "n1".into(),
                ips: vec![std::net::IpAddr::from([10, 0, 0, u8::try_from(at).unwrap()])],
                host_ips: vec![],
                labels: labels(own),
                host_network: false,
                terminal: false,
                deleting: false,
                ready: true,
                named_ports: Default::default(),
                ports: vec![],
                probe_ports: vec![],
                host_ports: vec![],
                foreign_probes: vec![],
                netns: None,
                http_telemetry: None,
            })));
        }
        let found = |service: &ObjectName, node| -> Vec<String> {
            caught(&mesh, service, node).map(|pod| pod.name.name.to_string()).collect()
        };
        assert_eq!(found(&service, "n1"), ["istiod-1"]);
        assert!(found(&service, "n2").is_empty(), "that is for the agent there to tell");
        assert!(found(&ObjectName::new("istio-system", "other"), "n1").is_empty());
    }
}
