//! What an object counts as that cannot be read, kind by kind.

use ambit_core::{
    discovery::{Pod, Service},
    model::Labels,
    policy::{Doubt, Mode, PeerAuthentication},
};
use std::sync::Arc;

use super::*;

/// What counts where no good version is known.
fn guessed(text: &str) -> MeshChange {
    match read(text).stated {
        Stated::Bad(Some(Change::Mesh(change))) => change,
        other => panic!("{text}: {other:?}"),
    }
}

fn pod(text: &str) -> Arc<Pod> {
    let MeshChange::Pod(pod) = guessed(text) else { panic!("no pod") };
    pod
}

fn policy(text: &str) -> Arc<PeerAuthentication> {
    match read(text).stated {
        Stated::Strictest(Change::Policies(PolicyChange::PeerAuthentication(policy))) => policy,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_namespace_whose_labels_cannot_be_read_opts_in() {
    for labels in ["[x]", "{ambit.dev/dataplane: 1}", "{a: [b]}", "enabled"] {
        let text = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {labels}}}}}");
        let MeshChange::Namespace(namespace) = guessed(&text) else { panic!("no namespace") };
        assert!(Settings::default().opts_in(Some(&namespace.labels), &Labels::new()), "{labels}");
    }
    // Elsewhere nothing is in doubt that matters.
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: 3}}";
    let MeshChange::Namespace(namespace) = guessed(text) else { panic!("no namespace") };
    assert!(namespace.labels.is_empty());
}

#[test]
fn a_pod_is_taken_without_the_fields_that_cannot_be_read() {
    let text = |metadata: &str, spec: &str, status: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, uid: u{metadata}}}, \
             spec: {{nodeName: n1, serviceAccountName: web{spec}}}, status: {{podIP: 10.0.0.1{status}}}}}"
        )
    };
    let whole = |pod: &Pod| {
        (&*pod.node, pod.ips.clone(), pod.identity.service_account()) == ("n1", ips(&["10.0.0.1"]), "web")
    };
    for (metadata, spec, status) in [
        (", creationTimestamp: yesterday", "", ""),
        ("", ", containers: 7", ""),
        ("", ", containers: [{ports: [{name: x, containerPort: 70000}]}, {livenessProbe: 3}]", ""),
        ("", ", hostNetwork: 'yes'", ""),
        ("", "", ", conditions: ready"),
        ("", "", ", podIPs: [{ip: nowhere}]"),
        (", creationTimestamp: [], annotations: 1", ", hostNetwork: 1", ", phase: {}"),
    ] {
        let found = pod(&text(metadata, spec, status));
        assert!(
            whole(&found) && !found.host_network && found.probe_ports.is_empty(),
            "{metadata}{spec}{status}: {found:?}"
        );
    }
    let unlabelled = pod(&text(", labels: [x]", "", ""));
    assert!(Settings::default().opts_in(None, &unlabelled.labels), "what may be opted in is left out");
    // Nobody's identity: the usual one would be somebody else's.
    let account = pod(&text("", "", "").replace("serviceAccountName: web", "serviceAccountName: [web]"));
    assert_eq!(account.identity.service_account(), "_unreadable_");
}

#[test]
fn services_and_slices_keep_what_can_be_read() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.96.0.1, sessionAffinity: Maybe, \
                ports: [{port: 80}, {port: '81'}, {port: 82}]}}";
    let MeshChange::Service(service) = guessed(text) else { panic!("no service") };
    let Service { cluster_ips, ports, .. } = &*service;
    assert_eq!(*cluster_ips, ips(&["10.96.0.1"]));
    assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 82]);
    let text = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e, labels: {kubernetes.io/service-name: s}}, \
                addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}, {addresses: [x, 10.0.0.2]}], ports: [{port: 80}]}";
    let MeshChange::EndpointSlice(slice) = guessed(text) else { panic!("no slice") };
    let addresses: Vec<_> = slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.clone()).collect();
    assert_eq!(addresses, ips(&["10.0.0.1", "10.0.0.2"]));
}

#[test]
fn a_list_of_nothing_but_mistakes_is_passed_over() {
    let ports: Vec<String> = (0..1_000).map(|_| "{port: x}".to_owned()).collect();
    let text = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{clusterIP: 10.96.0.1, ports: [{}]}}}}",
        ports.join(", ")
    );
    let MeshChange::Service(service) = guessed(&text) else { panic!("no service") };
    assert!(service.ports.is_empty());
}

#[test]
fn a_policy_is_strict_for_whom_it_may_select() {
    let web = Labels::from([("app".into(), "web".into())]);
    for (spec, doubt, selector) in [
        ("{mtls: {mode: STRIKT}}", Doubt::Content, Labels::new()),
        ("{selector: {matchLabels: {app: web}}, mtls: 3}", Doubt::Content, web.clone()),
        ("{selector: {matchLabels: {app: web}}, portLevelMtls: {x: {mode: STRICT}}}", Doubt::Content, web),
        ("{selector: {matchLabels: {app: [web]}}}", Doubt::Scope, Labels::new()),
        ("{selector: {matchLabels: {app: 'w*'}}}", Doubt::Scope, Labels::new()),
        ("{selector: app}", Doubt::Scope, Labels::new()),
        ("[]", Doubt::Scope, Labels::new()),
    ] {
        let policy = policy(&peer_authentication(spec));
        assert_eq!(
            (policy.doubt, &policy.selector, policy.created),
            (Some(doubt), &selector, None),
            "{spec}"
        );
        assert_eq!((policy.mode, policy.port_modes.len()), (Some(Mode::Strict), 0));
    }
    let dated = |stamp: &str| {
        let text = peer_authentication("{mtls: {mode: x}}");
        policy(&text.replace("namespace: shop", &format!("namespace: shop, creationTimestamp: {stamp}")))
            .created
    };
    assert_eq!((dated("'1970-01-01T00:00:10Z'"), dated("null")), (Some(10), None));
    assert_eq!((dated("soon"), dated("[1]")), (Some(i64::MIN), Some(i64::MIN)));
}
