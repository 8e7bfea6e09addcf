//! What is spoken on a pod's port, by the services that lead to it.

use super::Mesh;
use crate::{
    discovery::join,
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

impl Mesh {
    /// What is spoken on a pod's own `port`. Services that contradict each other say nothing.
    pub fn port_protocol(&self, pod: &Workload, port: u16) -> PortProtocol {
        let Some(record) = self.pods.get(&pod.name) else { return PortProtocol::Unknown };
        let mut said: Option<(bool, ProtocolOrigin)> = None;
        for service in self.services_of(&pod.name) {
            for own in join::tcp_ports(service) {
                let leads = match self.slices.get(&service.name) {
                    Some(slices) => slices.values().any(|slice| join::slice_target(own, slice) == Some(port)),
                    None => join::target(own, &record.pod) == Some(port),
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
