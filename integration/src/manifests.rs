//! The watched folder of Kubernetes manifests: what `kubectl get -o yaml` would print of the topology, and changes to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::topology::{MESHED, Pod, Topology, UNMESHED};

/// The namespaces, with requests to pods of the one in the mesh read and counted, whatever policies say.
pub const WATCHED: &str = "apiVersion: v1\nkind: List\nitems:\n\
    - {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {ambit.dev/dataplane: enabled}, \
       annotations: {ambit.dev/http-telemetry: enabled}}}\n\
    - {apiVersion: v1, kind: Namespace, metadata: {name: legacy}}\n";

/// The cluster IP of service `web`, over pods b and e (80 → named port `http`, 8080; 81 → named port `admin`, 8081; 9000
/// and 9001 as they are).
pub const WEB_V4: &str = "198.19.100.1";
/// The same service's IPv6 cluster IP.
pub const WEB_V6: &str = "fd00:198:100::1";
/// The cluster IP of service `single`, over pod b alone, with the same ports.
pub const SINGLE_V4: &str = "198.19.100.2";
/// The cluster IP of service `empty`, which has no endpoints.
pub const EMPTY_V4: &str = "198.19.100.3";

const NETNS_ANNOTATION: &str = "ambit.dev/netns";

/// The folder. Every write replaces a file as a whole; nothing is left on drop's account: the sandbox owns the folder.
#[derive(Clone, Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// A folder at `folder` with the topology's namespaces, pods and services in it.
    pub fn create(folder: &Path, topology: &Topology) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let manifests = Self { folder: folder.to_owned() };
        manifests.write("namespaces.yaml", &namespaces())?;
        for pod in &topology.pods {
            manifests.pod(topology, pod, &[])?;
        }
        manifests.write("services.yaml", &services(topology))?;
        Ok(manifests)
    }

    /// The folder's path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes `text` to the file `name`, in one step for a reader.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let beside = self.folder.with_extension("new");
        fs::write(&beside, text).with_context(|| beside.display().to_string())?;
        fs::rename(&beside, self.folder.join(name)).with_context(|| name.to_owned())
    }

    /// Removes the file `name`; one that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context(name.to_owned()),
            _ => Ok(()),
        }
    }

    /// Writes a pod's manifest, with labels beside its `app` label.
    pub fn pod(&self, topology: &Topology, pod: &Pod, labels: &[(&str, &str)]) -> Result<()> {
        self.pod_with(topology, pod, labels, "")
    }

    /// As [`Manifests::pod`], with `container` as further lines of the pod's container.
    pub fn pod_with(
        &self,
        topology: &Topology,
        pod: &Pod,
        labels: &[(&str, &str)],
        container: &str,
    ) -> Result<()> {
        self.write(&format!("pod-{}.yaml", pod.name), &pod_yaml(topology, pod, labels, container))
    }

    /// As [`Manifests::pod`], of another pod in the same place: with this UID.
    pub fn pod_as(&self, topology: &Topology, pod: &Pod, uid: &str) -> Result<()> {
        let text = pod_yaml(topology, pod, &[], "");
        let text = text.replace(&format!("uid: {}\n", pod_uid(pod)), &format!("uid: {uid}\n"));
        self.write(&format!("pod-{}.yaml", pod.name), &text)
    }

    /// Writes a PeerAuthentication for a whole namespace.
    pub fn peer_authentication(&self, namespace: &str, mode: &str) -> Result<()> {
        self.write(&format!("peer-authentication-{namespace}.yaml"), &peer_authentication(namespace, mode))
    }

    /// Removes what [`Manifests::peer_authentication`] wrote.
    pub fn no_peer_authentication(&self, namespace: &str) -> Result<()> {
        self.remove(&format!("peer-authentication-{namespace}.yaml"))
    }
}

/// A PeerAuthentication `default` for a whole namespace.
pub fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  \
         namespace: {namespace}\n  creationTimestamp: \"2026-01-01T00:00:00Z\"\nspec:\n  mtls:\n    mode: {mode}\n"
    )
}

/// The UID of a pod in its manifest: another service account makes it another pod.
pub fn pod_uid(pod: &Pod) -> String {
    format!("uid-{}-{}", pod.name, pod.service_account)
}

/// The namespaces as `kubectl get namespaces -o yaml` prints them: a list.
fn namespaces() -> String {
    let item = |name: &str, label: &str| {
        format!(
            "- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: {name}\n    labels:\n      \
             kubernetes.io/metadata.name: {name}\n{label}  status:\n    phase: Active\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: List\nmetadata:\n  resourceVersion: \"\"\nitems:\n{}{}",
        item(MESHED, "      ambit.dev/dataplane: enabled\n"),
        item(UNMESHED, "")
    )
}

fn pod_yaml(topology: &Topology, pod: &Pod, labels: &[(&str, &str)], container: &str) -> String {
    let Pod { name, namespace, service_account, v4, v6, .. } = pod;
    let extra: String = labels.iter().map(|(key, value)| format!("    {key}: {value:?}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n  \
         creationTimestamp: \"2026-01-01T00:00:00Z\"\n  labels:\n    app: {name}\n{extra}  annotations:\n    \
         {NETNS_ANNOTATION}: {netns}\nspec:\n  nodeName: {node}\n  serviceAccountName: {service_account}\n  \
         containers:\n  - name: main\n    image: example.invalid/main:1\n    ports:\n    - name: http\n      \
         containerPort: 8080\n      protocol: TCP\n    - name: admin\n      containerPort: 8081\n{container}status:\n  \
         phase: Running\n  hostIP: {host}\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: {v6}\n  conditions:\n  - type: Ready\n    \
         status: \"True\"\n",
        uid = pod_uid(pod),
        netns = pod.netns.name(),
        node = topology.nodes[pod.node].name,
        host = topology.nodes[pod.node].v4,
    )
}

fn services(topology: &Topology) -> String {
    let (b, e) = (topology.pod("b"), topology.pod("e"));
    let web_ports = "  - name: http\n    port: 80\n    targetPort: http\n    protocol: TCP\n  - name: admin\n    port: 81\n    \
                     targetPort: admin\n  - name: raw\n    port: 9000\n    targetPort: 9000\n  - name: who\n    port: 9001\n    targetPort: 9001\n";
    let documents = [
        service("web", &[WEB_V4, WEB_V6], web_ports),
        slice("web", "IPv4", &[b, e], topology),
        slice("web", "IPv6", &[b, e], topology),
        service("single", &[SINGLE_V4], web_ports),
        slice("single", "IPv4", &[b], topology),
        service("empty", &[EMPTY_V4], web_ports),
    ];
    documents.join("---\n")
}

fn service(name: &str, addresses: &[&str], ports: &str) -> String {
    let addresses_yaml: String = addresses.iter().map(|ip| format!("  - {ip:?}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {MESHED}\nspec:\n  type: ClusterIP\n  \
         clusterIP: {first:?}\n  clusterIPs:\n{addresses_yaml}  selector:\n    tier: {name}\n  ports:\n{ports}",
        first = addresses[0],
    )
}

fn slice(service: &str, family: &str, pods: &[&Pod], topology: &Topology) -> String {
    let endpoints: String = pods
        .iter()
        .map(|pod| {
            format!(
                "- addresses:\n  - {ip:?}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  \
                 nodeName: {node}\n  targetRef:\n    kind: Pod\n    name: {name}\n    namespace: {MESHED}\n    uid: {uid}\n",
                uid = pod_uid(pod),
                ip = pod.ip(family == "IPv6").to_string(),
                node = topology.nodes[pod.node].name,
                name = pod.name,
            )
        })
        .collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{suffix}\n  \
         namespace: {MESHED}\n  labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\n\
         endpoints:\n{endpoints}ports:\n- name: http\n  port: 8080\n  protocol: TCP\n- name: admin\n  port: 8081\n  \
         protocol: TCP\n- name: raw\n  port: 9000\n  protocol: TCP\n- name: who\n  port: 9001\n  protocol: TCP\n",
        suffix = family.to_lowercase(),
    )
}
