//! What is spoken on a pod's port, by the services that lead to it.

use std::sync::Arc;

use super::Mesh;
use crate::{
    discovery::{EndpointSlice, join},
    model::{ObjectName, Workload},
};

/// What is known of the protocol on a pod's port before anything is read of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// HTTP in the clear, as this says.
    Http(ProtocolOrigin),
    /// Something else, or HTTP within TLS of the application's own.
    Other(ProtocolOrigin),
    /// Nothing: a connection's first bytes tell.
    Unknown,
}

/// Where it is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolOrigin {
    /// The service.
    pub service: ObjectName,
    /// Its port.
    pub port: u16,
    /// What is said, in lower case.
    pub application: String,
    /// By `appProtocol`; else by the port's name or number.
    pub by_app_protocol: bool,
}

impl PortProtocol {
    /// How connections are read where policies need requests, in one word: `http`, `tcp`, or `sniffed`.
    pub fn reading(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Other(_) => "tcp",
            Self::Unknown => "sniffed",
        }
    }
}

impl Mesh {
    /// What is spoken on a pod's own `port`. Services that contradict each other say nothing.
    pub fn port_protocol(&self, pod: &Workload, port: u16) -> PortProtocol {
        let Some(record) = self.pods.get(&pod.name) else { return PortProtocol::Unknown };
        let mut said: Option<(bool, ProtocolOrigin)> = None;
        for service in self.services_of(&pod.name) {
            for own in join::tcp_ports(service) {
                let near = |slice: &&Arc<EndpointSlice>| slice.name.cluster == record.pod.name.cluster;
                let leads = match self.is_spoken_for(&service.name) {
                    true => self
                        .slices_of(&service.name)
                        .filter(near)
                        .any(|slice| join::slice_target(own, slice) == Some(port)),
                    false => join::target(own, &record.pod) == Some(port),
                };
                let Some(application) = own.application().filter(|_| leads) else { continue };
                let http = !own.is_not_http();
                if said.as_ref().is_some_and(|(other, _)| *other != http) {
                    return PortProtocol::Unknown;
                }
                let origin = ProtocolOrigin {
                    service: service.name.clone(),
                    port: own.port,
                    by_app_protocol: own
                        .app_protocol
                        .as_deref()
                        .is_some_and(|stated| stated.eq_ignore_ascii_case(&application)),
                    application,
                };
                said.get_or_insert((http, origin));
            }
        }
        match said {
            Some((true, origin)) => PortProtocol::Http(origin),
            Some((false, origin)) => PortProtocol::Other(origin),
            None => PortProtocol::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{
        Change, TargetPort,
        mesh::tests::{mesh, pod, service},
    };

    /// What is known of port 8080 of a pod behind services whose ports have these names and protocols.
    fn known(ports: &[(&str, Option<&str>)]) -> PortProtocol {
        let mut mesh = mesh([pod("shop/web", &["198.18.1.2"])]);
        for (at, (name, stated)) in ports.iter().enumerate() {
            let mut service = service("shop/web", &[], &[(80, TargetPort::Number(8080))]);
            service.name = ObjectName::new("shop", &*format!("service{at}"));
            service.ports[0].name = (*name).to_owned();
            service.ports[0].app_protocol = stated.map(Into::into);
            mesh.apply(Change::Service(Arc::new(service)));
        }
        let pod = mesh.pod(&ObjectName::new("shop", "web")).unwrap();
        assert_eq!(mesh.port_protocol(pod, 8081), PortProtocol::Unknown, "another port");
        mesh.port_protocol(pod, 8080)
    }

    #[test]
    fn services_say_what_their_ports_carry() {
        let http = |ports| matches!(known(ports), PortProtocol::Http(_));
        let other = |ports| matches!(known(ports), PortProtocol::Other(_));
        assert_eq!(known(&[]), PortProtocol::Unknown);
        assert_eq!(known(&[("web", None)]), PortProtocol::Unknown);
        assert!(http(&[("http", None)]) && http(&[("grpc-web", None)]) && http(&[("HTTP2-x", None)]));
        assert!(http(&[("tcp", Some("http"))]) && http(&[("x", Some("kubernetes.io/h2c"))]));
        assert!(other(&[("tcp-x", None)]) && other(&[("https", None)]) && other(&[("http", Some("redis"))]));
        assert!(http(&[("x", None), ("http", None)]), "one that says nothing does not contradict");
        assert_eq!(known(&[("http", None), ("tcp", None)]), PortProtocol::Unknown);
        let PortProtocol::Http(origin) = known(&[("tcp", Some("HTTP"))]) else { panic!() };
        assert_eq!((&*origin.application, origin.by_app_protocol, origin.port), ("http", true, 80));
    }
}
