//! An object of another cluster as it is written down: what discovery needs of it, in the form that Kubernetes gives it.

use std::time::{Duration, UNIX_EPOCH};

use ambit_core::discovery::{Change, EndpointSlice, Namespace, Pod, Protocol, SliceEndpoint, SlicePort};
use serde_json::{Value, json};

/// What brings the change about when it is read as an object of its cluster. Of pods what concerns their own node only is left out.
pub(super) fn of(change: &Change) -> Option<Value> {
    match change {
        Change::RemoteNamespace { namespace, .. } => Some(of_namespace(namespace)),
        Change::Pod(pod) => Some(of_pod(pod)),
        Change::EndpointSlice(slice) => Some(of_slice(slice)),
        _ => None,
    }
}

fn of_namespace(namespace: &Namespace) -> Value {
    json!({"kind": "Namespace", "metadata": {"name": &*namespace.name, "labels": namespace.labels}})
}

fn of_pod(pod: &Pod) -> Value {
    let uid = unqualified(pod, &pod.uid);
    let since = pod.created.and_then(|seconds| u64::try_from(seconds).ok());
    let created = since.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let created = created.map(|created| humantime::format_rfc3339_seconds(created).to_string());
    let named = pod.named_ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port}));
    let unnamed = pod.ports.iter().filter(|port| !pod.named_ports.values().any(|named| named == *port));
    let ports: Vec<Value> = named.chain(unnamed.map(|port| json!({"containerPort": port}))).collect();
    let ips: Vec<Value> = pod.ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "kind": "Pod",
        "metadata": {
            "name": &*pod.name.name,
            "namespace": &*pod.name.namespace,
            // Where its manifest had none, namespace and name stand for it.
            "uid": (!uid.contains('/')).then_some(uid),
            "creationTimestamp": created,
            "deletionTimestamp": pod.deleting.then_some("1970-01-01T00:00:00Z"),
            "labels": pod.labels,
        },
        "spec": {
            "nodeName": unqualified(pod, &pod.node),
            "serviceAccountName": pod.identity.service_account(),
            "hostNetwork": pod.host_network,
            "containers": [{"ports": ports}],
        },
        "status": {
            "phase": pod.terminal.then_some("Succeeded"),
            "podIPs": ips,
            "conditions": [{"type": "Ready", "status": if pod.ready { "True" } else { "False" }}],
        },
    })
}

fn of_slice(slice: &EndpointSlice) -> Value {
    let service = slice.service.as_ref().map(|service| &*service.name);
    let ports: Vec<Value> = slice.ports.iter().map(of_port).collect();
    let endpoints: Vec<Value> = slice.endpoints.iter().map(|endpoint| of_endpoint(slice, endpoint)).collect();
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": &*slice.name.name,
            "namespace": &*slice.name.namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": ports,
        "endpoints": endpoints,
    })
}

fn of_port(port: &SlicePort) -> Value {
    let protocol = match port.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    json!({"name": port.name, "port": port.port, "protocol": protocol})
}

fn of_endpoint(slice: &EndpointSlice, endpoint: &SliceEndpoint) -> Value {
    let pod = endpoint
        .pod
        .as_ref()
        .map(|pod| json!({"kind": "Pod", "namespace": &*pod.namespace, "name": &*pod.name}));
    let named = |names: &[std::sync::Arc<str>]| -> Vec<Value> {
        names.iter().map(|name| json!({"name": &**name})).collect()
    };
    let hints = endpoint.hints.as_ref();
    let hints = hints.map(|hints| json!({"forNodes": named(&hints.nodes), "forZones": named(&hints.zones)}));
    json!({
        "addresses": endpoint.addresses,
        "conditions": {"ready": endpoint.ready, "serving": true, "terminating": endpoint.leaving},
        "targetRef": pod,
        "nodeName": endpoint.node.as_deref().map(|node| without_cluster(slice.name.cluster.as_deref(), node)),
        "hints": hints,
    })
}

fn unqualified<'a>(pod: &Pod, text: &'a str) -> &'a str {
    without_cluster(pod.name.cluster.as_deref(), text)
}

/// The name as its own cluster has it.
fn without_cluster<'a>(cluster: Option<&str>, name: &'a str) -> &'a str {
    let rest = cluster.and_then(|cluster| name.strip_prefix(cluster)?.strip_prefix('/'));
    rest.unwrap_or(name)
}
