//! Kubernetes objects as they are written, as far as discovery and policy need them.
//!
//! Lenient as the API machinery: every field may be absent or null, unknown ones are passed over. Judging values is left
//! to the conversion.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize,
    de::{Deserializer, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

/// Labels, annotations, selectors: a null value is an empty one.
pub(super) type Pairs = BTreeMap<String, Option<String>>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) creation_timestamp: Option<String>,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) labels: Option<Pairs>,
    pub(super) annotations: Option<Pairs>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Namespace {
    pub(super) metadata: Option<Metadata>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Pod {
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<PodSpec>,
    pub(super) status: Option<PodStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) service_account_name: Option<String>,
    /// The old name of `serviceAccountName`.
    pub(super) service_account: Option<String>,
    pub(super) host_network: Option<bool>,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct Container {
    pub(super) ports: Option<Vec<ContainerPort>>,
    pub(super) restart_policy: Option<String>,
    pub(super) liveness_probe: Option<Probe>,
    pub(super) readiness_probe: Option<Probe>,
    pub(super) startup_probe: Option<Probe>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct Probe {
    pub(super) http_get: Option<ProbeTarget>,
    pub(super) tcp_socket: Option<ProbeTarget>,
    pub(super) grpc: Option<ProbeTarget>,
}

/// Where a probe of any kind connects to; `host` is not for gRPC.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct ProbeTarget {
    pub(super) port: Option<IntOrString>,
    pub(super) host: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    pub(super) container_port: Option<i64>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<PodIp>>,
    pub(super) conditions: Option<Vec<Condition>>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct PodIp {
    pub(super) ip: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) status: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Service {
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<ServiceSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Option<Vec<String>>,
    pub(super) ports: Option<Vec<ServicePort>>,
    pub(super) selector: Option<Pairs>,
    pub(super) session_affinity: Option<String>,
    pub(super) internal_traffic_policy: Option<String>,
    pub(super) publish_not_ready_addresses: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct ServicePort {
    pub(super) name: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) target_port: Option<IntOrString>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct EndpointSlice {
    pub(super) metadata: Option<Metadata>,
    pub(super) address_type: Option<String>,
    pub(super) endpoints: Option<Vec<Endpoint>>,
    pub(super) ports: Option<Vec<EndpointPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct Endpoint {
    pub(super) addresses: Option<Vec<String>>,
    pub(super) conditions: Option<EndpointConditions>,
    pub(super) target_ref: Option<ObjectReference>,
    pub(super) node_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct ObjectReference {
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct EndpointPort {
    pub(super) name: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct PeerAuthentication {
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<PeerAuthenticationSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct PeerAuthenticationSpec {
    pub(super) selector: Option<Selector>,
    pub(super) mtls: Option<MutualTls>,
    pub(super) port_level_mtls: Option<BTreeMap<String, Option<MutualTls>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct Selector {
    pub(super) match_labels: Option<Pairs>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct MutualTls {
    pub(super) mode: Option<String>,
}

/// Reads each type from an object only: what serde derives would take a list of the fields' values as well, and a list
/// in place of a `spec` is a mistake.
macro_rules! from_objects {
    ($($name:ident),* $(,)?) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;

                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<$name, A::Error> {
                        $name::deserialize(MapAccessDeserializer::new(fields))
                    }
                }

                deserializer.deserialize_map(Fields)
            }
        }
    )*};
}

from_objects! {
    Metadata, Namespace, Pod, PodSpec, Container, ContainerPort, Probe, ProbeTarget, PodStatus, PodIp, Condition, Service, ServiceSpec, ServicePort, EndpointSlice, Endpoint, EndpointConditions, ObjectReference, EndpointPort, PeerAuthentication, PeerAuthenticationSpec, Selector, MutualTls
}

/// A number or a text, as Kubernetes has it in `targetPort`.
#[derive(Debug)]
pub(super) enum IntOrString {
    Int(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a text")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(i64::try_from(value).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}
