mod authorization_policy;
mod destination_rule;
mod doubt;
mod misspelt;
mod peer_authentication;
mod request_authentication;

use std::{net::IpAddr, time::Duration};

use ambit_core::{
    discovery::{Change as MeshChange, ForeignProbe, HostPort, Protocol, TargetPort},
    policy::Change as PolicyChange,
};

use super::*;
use crate::discovery::folder::documents::{self, Syntax};

fn read(text: &str) -> Entry {
    let mut documents = documents::read(text.as_bytes(), Syntax::Yaml);
    assert_eq!((documents.error, documents.values.len()), (None, 1), "{text}");
    let object = documents.values.remove(0);
    let kind = Kind::named(object["kind"].as_str().unwrap(), "").unwrap();
    Entry::read(kind, &object, &Settings::default()).unwrap()
}

/// The change that an object makes which must be good.
fn one(text: &str) -> Change {
    let entry = read(text);
    assert_eq!(entry.problem, None, "{text}");
    let Stated::Good(change) = entry.stated else { panic!("not read: {text}") };
    change
}

/// `object: field: message` of what is wrong with an object.
fn complaint(text: &str) -> String {
    let entry = read(text);
    format!("{}: {}", entry.key, entry.problem.unwrap())
}

fn peer_authentication(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn authorization_policy(spec: &str) -> String {
    peer_authentication(spec).replace("PeerAuthentication", "AuthorizationPolicy")
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn a_pod_as_kubectl_prints_it() {
    let Change::Mesh(MeshChange::Pod(pod)) = one(r#"
apiVersion: v1
kind: Pod
metadata:
  annotations:
    ambit.dev/netns: pod-a
  creationTimestamp: "2026-01-31T12:00:00Z"
  generateName: web-5d4f-
  labels: {app: web, pod-template-hash: 5d4f}
  managedFields:
  - apiVersion: v1
    fieldsV1: {"f:metadata": {}}
  name: web-5d4f-x7k2p
  namespace: shop
  ownerReferences: null
  uid: 0b5c
spec:
  containers:
  - image: nginx
    name: web
    ports:
    - {containerPort: 8080, name: http, protocol: TCP}
    - {containerPort: 8081, name: http}
    - {containerPort: 53, name: dns, protocol: UDP}
    - {containerPort: 9000, hostPort: 90, hostIP: 192.0.2.1}
    - {containerPort: 9001, hostPort: 91, hostIP: 0.0.0.0, protocol: TCP}
    - {containerPort: 9001, hostPort: 91, protocol: UDP}
  - name: side
    ports: null
  initContainers:
  - {name: once, ports: [{name: once, containerPort: 1}]}
  - {name: proxy, restartPolicy: Always, ports: [{name: admin, containerPort: 15000}]}
  nodeName: n1
  serviceAccountName: web
status:
  conditions:
  - {lastProbeTime: null, status: "True", type: Initialized}
  - {lastProbeTime: null, status: "False", type: Ready}
  hostIP: 192.0.2.1
  hostIPs:
  - ip: 192.0.2.1
  - ip: 2001:db8::1
  phase: Running
  podIP: 10.0.0.1
  podIPs:
  - ip: 10.0.0.1
  - ip: fd00::1
"#)
    else {
        panic!("no pod")
    };
    assert_eq!(pod.name, ObjectName::new("shop", "web-5d4f-x7k2p"));
    assert_eq!((&*pod.uid, pod.created), ("0b5c", Some(1_769_860_800)));
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&*pod.node, pod.netns.as_deref()), ("n1", Some("pod-a")));
    assert_eq!(pod.ips, ips(&["10.0.0.1", "fd00::1"]));
    assert_eq!(pod.host_ips, ips(&["192.0.2.1", "2001:db8::1"]));
    let host_port =
        |ip: Option<&str>, port, target| HostPort { ip: ip.map(|ip| ip.parse().unwrap()), port, target };
    assert_eq!(pod.host_ports, [host_port(Some("192.0.2.1"), 90, 9000), host_port(None, 91, 9001)]);
    assert_eq!(pod.labels["app"], "web");
    assert!(!pod.ready && !pod.terminal && !pod.host_network);
    let ports: Vec<_> = pod.named_ports.iter().map(|(name, port)| (&**name, *port)).collect();
    assert_eq!(ports, [("admin", 15000), ("http", 8080)]);
}

#[test]
fn probes_name_ports_of_the_pod() {
    let pod = |containers: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  {containers}\n\
             status: {{podIP: 10.0.0.1}}\n"
        )
    };
    for (containers, ports) in [
        ("containers: [{livenessProbe: {httpGet: {port: 8080}}}]", &[8080_u16][..]),
        (
            "containers: [{readinessProbe: {tcpSocket: {port: '9000'}}, startupProbe: {grpc: {port: 80}}}]",
            &[80, 9000],
        ),
        (
            "containers: [{ports: [{name: web, containerPort: 81}], livenessProbe: {httpGet: {port: web}}}]",
            &[81],
        ),
        // A name is one of the same container's; a port of another host, or of a command, is none of the pod's.
        (
            "containers: [{livenessProbe: {httpGet: {port: web}}}, {ports: [{name: web, containerPort: 81}]}]",
            &[],
        ),
        ("containers: [{livenessProbe: {httpGet: {port: 80, host: 192.0.2.1}}}]", &[]),
        ("containers: [{livenessProbe: {httpGet: {port: 80, host: 10.0.0.1}}}]", &[80]),
        ("containers: [{livenessProbe: {exec: {command: [true]}}}]", &[]),
        (
            "initContainers: [{restartPolicy: Always, startupProbe: {tcpSocket: {port: 7}}}, {livenessProbe: {grpc: {port: 8}}}]",
            &[7],
        ),
        // The kubelet connects for hooks as it does for probes.
        (
            "containers: [{lifecycle: {preStop: {httpGet: {port: 82}}, postStart: {tcpSocket: {port: 83}}}}]",
            &[82, 83],
        ),
        ("containers: [{lifecycle: {preStop: {httpGet: {port: 82, host: 192.0.2.1}}}}]", &[]),
        ("containers: [{lifecycle: {preStop: {exec: {command: [true]}}}}]", &[]),
    ] {
        let Change::Mesh(MeshChange::Pod(found)) = one(&pod(containers)) else { panic!("no pod") };
        assert_eq!(found.probe_ports, ports, "{containers}");
    }
}

#[test]
fn what_is_silently_nothing_is_pointed_out() {
    let object = |kind: &str, rest: &str| format!("apiVersion: v1\nkind: {kind}\n{rest}\n");
    let labelled = |kind: &str, value: &str| {
        object(
            kind,
            &format!("metadata: {{name: a, namespace: shop, labels: {{ambit.dev/dataplane: '{value}'}}}}"),
        )
    };
    for kind in ["Namespace", "Pod"] {
        for value in ["true", "Enabled", ""] {
            let text = labelled(kind, value);
            let expected = format!(
                "metadata.labels.ambit.dev/dataplane: {value:?} is neither \"enabled\" nor \"disabled\", and has no effect"
            );
            assert!(complaint(&text).ends_with(&expected), "{}", complaint(&text));
            assert!(read(&text).stated.is_good());
        }
        for value in ["enabled", "disabled"] {
            one(&labelled(kind, value));
        }
    }
    let service = |rest: &str| object("Service", &format!("metadata: {{name: a, namespace: shop{rest}"));
    let told = complaint(&service("}\nspec: {trafficDistribution: PreferFar}"));
    assert!(told.contains("spec.trafficDistribution: \"PreferFar\" is not known"), "{told}");
    for wish in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        one(&service(&format!("}}\nspec: {{trafficDistribution: {wish}}}")));
    }
}

#[test]
fn where_else_a_pod_has_the_kubelet_connect_to() {
    let found = |container: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{ports: [{{name: dns, containerPort: 53, \
             protocol: UDP}}], {container}}}]\nstatus: {{podIP: 10.0.0.1}}\n"
        );
        let Change::Mesh(MeshChange::Pod(pod)) = one(&text) else { panic!("no pod") };
        let told = |probe: &ForeignProbe| (probe.host.map(|host| host.to_string()), probe.port);
        pod.foreign_probes.iter().map(told).collect::<Vec<_>>()
    };
    let at = |host: &str, port| vec![(Some(host.to_owned()), Some(port))];
    for (container, expected) in [
        ("livenessProbe: {httpGet: {port: 80}}", vec![]),
        ("livenessProbe: {httpGet: {port: 80, host: 10.0.0.1}}", vec![]),
        ("livenessProbe: {httpGet: {port: 80, host: localhost}}", vec![]),
        ("livenessProbe: {httpGet: {port: 80, host: '::1'}}", vec![]),
        ("livenessProbe: {httpGet: {port: 80, host: 10.0.0.2}}", at("10.0.0.2", 80)),
        ("readinessProbe: {tcpSocket: {port: '81', host: '::ffff:10.0.0.2'}}", at("10.0.0.2", 81)),
        ("startupProbe: {httpGet: {port: dns, host: 10.0.0.2}}", at("10.0.0.2", 53)),
        ("lifecycle: {postStart: {httpGet: {port: 80, host: 10.0.0.2}}}", at("10.0.0.2", 80)),
        ("lifecycle: {preStop: {tcpSocket: {port: 80, host: 10.0.0.2}}}", at("10.0.0.2", 80)),
        ("lifecycle: {preStop: {httpGet: {port: 80}, exec: {command: [x]}}}", vec![]),
        ("livenessProbe: {httpGet: {port: nowhere, host: 10.0.0.2}}", vec![]),
        ("livenessProbe: {httpGet: {port: 80, host: other.example}}", vec![(None, Some(80))]),
        // An address to the resolvers of some, a name to us.
        ("livenessProbe: {httpGet: {port: 80, host: '0x0a000002'}}", vec![(None, Some(80))]),
        ("livenessProbe: {httpGet: {host: 10.0.0.2}}", vec![(Some("10.0.0.2".to_owned()), None)]),
    ] {
        assert_eq!(found(container), expected, "{container}");
    }
}

#[test]
fn a_pod_with_next_to_nothing() {
    for text in [
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: null, labels: null, uid: '', creationTimestamp: null}\n\
         spec: {containers: null, nodeName: null, serviceAccountName: '', hostNetwork: null}\n\
         status: {podIPs: [], podIP: '', conditions: null, phase: null}\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: null\nstatus: null\n",
    ] {
        let Change::Mesh(MeshChange::Pod(pod)) = one(text) else { panic!("no pod") };
        assert_eq!((&*pod.uid, &*pod.node, pod.ips.len()), ("default/a", "", 0));
        assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/default/sa/default");
        assert!(pod.ready && !pod.terminal);
    }
}

#[test]
fn pods_that_have_ended_or_moved() {
    for (phase, terminal) in [("Running", false), ("Pending", false), ("Succeeded", true), ("Failed", true)] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nstatus: {{phase: {phase}, podIP: '::ffff:10.0.0.1'}}\n"
        );
        let Change::Mesh(MeshChange::Pod(pod)) = one(&text) else { panic!("no pod") };
        assert_eq!((pod.terminal, &pod.ips), (terminal, &ips(&["10.0.0.1"])), "{phase}");
    }
}

#[test]
fn a_service_with_all_kinds_of_ports() {
    let Change::Mesh(MeshChange::Service(service)) = one(r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: null}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd96::1"]
  internalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, protocol: TCP, targetPort: web}
  - {name: raw, port: 81, targetPort: 8081}
  - {name: same, port: 82}
  - {name: text, port: 83, targetPort: "8083"}
  - {name: dns, port: 53, protocol: UDP}
  selector: {app: web}
  sessionAffinity: ClientIP
  type: ClusterIP
status: {loadBalancer: {}}
"#)
    else {
        panic!("no service")
    };
    assert_eq!(service.cluster_ips, ips(&["10.96.0.1", "fd96::1"]));
    assert_eq!(service.session_affinity, Some(Duration::from_secs(10_800)));
    assert!(service.local_only && !service.publish_not_ready);
    let ports: Vec<_> =
        service.ports.iter().map(|port| (port.port, port.target.clone(), port.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, TargetPort::Name("web".into()), Protocol::Tcp),
            (81, TargetPort::Number(8081), Protocol::Tcp),
            (82, TargetPort::Number(82), Protocol::Tcp),
            (83, TargetPort::Number(8083), Protocol::Tcp),
            (53, TargetPort::Number(53), Protocol::Udp),
        ]
    );
}

#[test]
fn session_affinity_and_its_time() {
    for (spec, seconds) in [
        ("{}", None),
        ("{sessionAffinity: None}", None),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}", Some(60)),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {}}}", Some(10_800)),
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n");
        let Change::Mesh(MeshChange::Service(service)) = one(&text) else { panic!("no service") };
        assert_eq!(service.session_affinity, seconds.map(Duration::from_secs), "{spec}");
    }
}

#[test]
fn a_service_seen_from_outside() {
    let Change::Mesh(MeshChange::Service(service)) = one(r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  type: LoadBalancer
  externalIPs: [198.51.100.1, 203.0.113.1]
  externalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, nodePort: 30080}
  - {name: none, port: 81, nodePort: 0}
status:
  loadBalancer:
    ingress:
    - {ip: 203.0.113.1, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}
    - {ip: 203.0.113.2}
    - {ip: 203.0.113.3, ipMode: Proxy}
    - {hostname: lb.example.org}
    - {ip: 127.0.0.1}
"#)
    else {
        panic!("no service")
    };
    assert_eq!(service.external_ips, ips(&["198.51.100.1", "203.0.113.1", "203.0.113.2"]));
    assert!(service.external_local && !service.local_only);
    let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [Some(30_080), None]);
}

#[test]
fn services_without_an_address_of_their_own() {
    for spec in [
        "{clusterIP: None, clusterIPs: [None]}",
        "{type: ExternalName, externalName: x.org}",
        "{clusterIP: ''}",
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}\n");
        let Change::Mesh(MeshChange::Service(service)) = one(&text) else { panic!("no service") };
        assert!(service.cluster_ips.is_empty(), "{spec}");
    }
}

#[test]
fn an_endpoint_slice() {
    let Change::Mesh(MeshChange::EndpointSlice(slice)) = one(r#"
addressType: IPv4
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, namespace: shop, labels: {kubernetes.io/service-name: web}}
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: n1
  targetRef: {kind: Pod, name: web-1, namespace: shop, uid: x}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: null}}
- {addresses: [10.0.0.4]}
- {addresses: [10.0.0.5], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.6], conditions: {ready: false, serving: false, terminating: true}}
ports:
- {name: http, port: 8080, protocol: TCP}
- {name: "", port: null}
- {name: null, port: 1}
"#)
    else {
        panic!("no slice")
    };
    assert_eq!(slice.service, Some(ObjectName::new("shop", "web")));
    let ready: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.ready).collect();
    assert_eq!(ready, [true, false, true, true, false, false]);
    let leaving: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.leaving).collect();
    assert_eq!(leaving, [false, false, false, false, true, false]);
    assert_eq!(slice.endpoints[0].pod, Some(ObjectName::new("shop", "web-1")));
    let ports: Vec<_> = slice.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 8080), ("", 1)]);
    let fqdn = "addressType: FQDN\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\nendpoints: [{addresses: [a.org]}]\n";
    let Change::Mesh(MeshChange::EndpointSlice(slice)) = one(fqdn) else { panic!("no slice") };
    assert!(slice.endpoints.is_empty() && slice.service.is_none());
}

#[test]
fn bad_objects_are_named_with_the_field() {
    for (text, expected) in [
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: [n]}}",
            "Pod default/a: spec.nodeName: invalid type: sequence, expected a string",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: 'yes'}}",
            "Pod default/a: spec.hostNetwork: invalid type: string \"yes\", expected a boolean",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {serviceAccountName: 'a/b'}}",
            "Pod default/a: spec.serviceAccountName: \"a/b\" is not a namespace or service account name",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 10.0.0.256}]}}",
            "Pod default/a: status.podIPs[0].ip: \"10.0.0.256\" is not an IP address",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 127.0.0.1}}",
            "Pod default/a: status.podIP: 127.0.0.1 cannot be the address of a pod or service",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{}, {ports: [{name: x, containerPort: 70000}]}]}}",
            "Pod default/a: spec.containers[1].ports[0].containerPort: 70000 is not a port (1 to 65535)",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, creationTimestamp: yesterday}}",
            "Pod default/a: metadata.creationTimestamp: \"yesterday\" is not a time of the form 2026-01-31T12:00:00Z",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, labels: [x]}}",
            "Pod default/a: metadata.labels: invalid type: sequence, expected a map",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80}, {port: '81'}]}}",
            "Service default/s: spec.ports[1].port: invalid type: string \"81\", expected i64",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{targetPort: 80}]}}",
            "Service default/s: spec.ports[0].port: is missing",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80, protocol: tcp}]}}",
            "Service default/s: spec.ports[0].protocol: \"tcp\" is not one of TCP, UDP, SCTP",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIPs: [x]}}",
            "Service default/s: spec.clusterIPs[0]: \"x\" is not an IP address",
        ),
        (
            "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 80, targetPort: 1.5}]}}",
            "Service default/s: spec.ports[0].targetPort: invalid type: floating point `1.5`, expected a whole number or a text",
        ),
        (
            "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e}, addressType: IPv6, endpoints: [{addresses: [10.0.0.1]}]}",
            "EndpointSlice default/e: endpoints[0].addresses[0]: 10.0.0.1 is not of the slice's addressType",
        ),
    ] {
        assert_eq!(complaint(text), expected);
        assert!(!read(text).stated.is_good(), "{text}");
    }
}

#[test]
fn texts_from_an_object_are_cut_in_messages() {
    let text = peer_authentication(&format!("{{mtls: {{mode: {}}}}}", "x".repeat(100_000)));
    assert!(complaint(&text).len() < 1_000);
    let text =
        peer_authentication(&format!("{{portLevelMtls: {{? '{0}' : {{mode: [1]}}}}}}", "x".repeat(100_000)));
    assert!(complaint(&text).len() < 1_000);
}

#[test]
fn a_manifest_finds_every_kind_and_no_other() {
    for row in Kind::rows() {
        assert_eq!(Kind::named(row.name, row.group), Some(row.kind));
        let alike = |other: &&Row| other.name == row.name || other.plural == row.plural;
        assert_eq!(Kind::rows().iter().filter(alike).count(), 1, "{}", row.name);
    }
    // In a wrong group it is a mistake to be pointed out, but Knative has services of its own.
    assert_eq!(Kind::named("PeerAuthentication", "istio.io"), Some(Kind::PeerAuthentication));
    assert_eq!(Kind::named("Service", "serving.knative.dev"), None);
}
