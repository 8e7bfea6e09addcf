//! The endpoints of one service that take connections, set out for look-up.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use super::{EndpointSlice, Pod, Service, selects, slice_target, target, tcp_ports};
use crate::model::ObjectName;

/// The endpoints of one service by (service port, IPv6).
#[derive(Debug, Default)]
pub(in crate::discovery) struct Backends(HashMap<(u16, bool), Tiers>);

/// Endpoints that are ready, and those that terminate and still serve.
type Tiers = [Vec<Backend>; 2];

const READY: usize = 0;
const LEAVING: usize = 1;

/// An endpoint of a service.
#[derive(Clone, Debug)]
pub(in crate::discovery) struct Backend {
    /// Its address and port.
    pub(in crate::discovery) addr: SocketAddr,
    /// The node it is on, if that is stated.
    pub(in crate::discovery) node: Option<Arc<str>>,
    /// The pod it stands for, if it does.
    pub(in crate::discovery) pod: Option<ObjectName>,
}

impl Backends {
    /// The endpoints as endpoint slices state them.
    pub(in crate::discovery) fn from_slices<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Arc<EndpointSlice>>,
    ) -> Self {
        let mut backends = Self::default();
        for slice in slices {
            for port in tcp_ports(service) {
                let Some(target) = slice_target(port, slice) else { continue };
                for endpoint in &slice.endpoints {
                    let tier = match endpoint.ready || service.publish_not_ready {
                        true => READY,
                        false if endpoint.leaving => LEAVING,
                        false => continue,
                    };
                    for ip in &endpoint.addresses {
                        let backend = Backend {
                            addr: SocketAddr::new(*ip, target),
                            node: endpoint.node.clone(),
                            pod: endpoint.pod.clone(),
                        };
                        backends.add(port.port, tier, backend);
                    }
                }
            }
        }
        backends.finish()
    }

    /// The endpoints of a service without slices, from the pods that its selector matches.
    pub(in crate::discovery) fn from_pods<'a>(
        service: &Service,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Self {
        let mut backends = Self::default();
        let serves = |pod: &&Pod| (pod.ready || service.publish_not_ready) && selects(service, pod);
        for pod in pods.filter(serves) {
            let tier = if pod.deleting && !service.publish_not_ready { LEAVING } else { READY };
            for port in tcp_ports(service) {
                let Some(target) = target(port, pod) else { continue };
                for ip in &pod.ips {
                    let backend = Backend {
                        addr: SocketAddr::new(*ip, target),
                        node: Some(Arc::clone(&pod.node)),
                        pod: Some(pod.name.clone()),
                    };
                    backends.add(port.port, tier, backend);
                }
            }
        }
        backends.finish()
    }

    /// Has these endpoints too.
    pub(in crate::discovery) fn join(&mut self, others: Self) {
        for (port, tiers) in others.0 {
            let own = self.0.entry(port).or_default();
            own.iter_mut().zip(tiers).for_each(|(own, others)| own.extend(others));
        }
        *self = std::mem::take(self).finish();
    }

    /// Those behind a port of the service, of one address family: the ready ones, and those to turn to where none is.
    pub(in crate::discovery) fn tiers(&self, port: u16, ipv6: bool) -> impl Iterator<Item = &[Backend]> {
        self.0.get(&(port, ipv6)).into_iter().flatten().map(Vec::as_slice)
    }

    fn add(&mut self, port: u16, tier: usize, backend: Backend) {
        self.0.entry((port, backend.addr.is_ipv6())).or_default()[tier].push(backend);
    }

    /// An endpoint may stand in two slices while it moves between them: it counts once.
    fn finish(mut self) -> Self {
        for list in self.0.values_mut().flatten() {
            list.sort_by_key(|backend| backend.addr);
            list.dedup_by_key(|backend| backend.addr);
        }
        self
    }
}
