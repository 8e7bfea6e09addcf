//! The endpoints of one service that take connections, set out for look-up.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use super::{EndpointSlice, Pod, Service, selects, slice_target, target, tcp_ports};
use crate::{
    discovery::{Distribution, Hints},
    model::ObjectName,
};

/// The endpoints of one service by (service port, IPv6).
#[derive(Debug, Default)]
pub(in crate::discovery) struct Backends(HashMap<(u16, bool), Tiers>);

/// Endpoints that are ready, and those that terminate and still serve.
type Tiers = [Tier; 2];

/// Endpoints that are equally ready.
#[derive(Debug, Default)]
pub(in crate::discovery) struct Tier {
    /// By address.
    pub(in crate::discovery) all: Vec<Backend>,
    /// The positions of those that are meant for a node; empty unless each is meant for one.
    by_node: BTreeMap<Arc<str>, Vec<usize>>,
    /// The same for zones.
    by_zone: BTreeMap<Arc<str>, Vec<usize>>,
}

impl Tier {
    /// The positions of those that are meant for clients of a node, or else of its zone; `None` where clients are to use all. Hints
    /// count only where every endpoint has some, as in kube-proxy.
    pub(in crate::discovery) fn near(&self, node: &str, zone: Option<&str>) -> Option<&[usize]> {
        let near = self.by_node.get(node).or_else(|| self.by_zone.get(zone?));
        near.map(Vec::as_slice)
    }

    /// An endpoint may stand in two slices while it moves between them: it counts once.
    fn finish(&mut self) {
        self.all.sort_by_key(|backend| backend.addr);
        self.all.dedup_by_key(|backend| backend.addr);
        self.by_node = index(&self.all, |hints| &hints.nodes);
        self.by_zone = index(&self.all, |hints| &hints.zones);
    }
}

/// The positions by what hints name, if all have hints.
fn index(all: &[Backend], named: fn(&Hints) -> &Vec<Arc<str>>) -> BTreeMap<Arc<str>, Vec<usize>> {
    let mut index: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
    for (at, backend) in all.iter().enumerate() {
        let names = backend.hints.as_deref().map(named).filter(|names| !names.is_empty());
        let Some(names) = names else { return BTreeMap::new() };
        for name in names {
            index.entry(Arc::clone(name)).or_default().push(at);
        }
    }
    index
}

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
    /// Whose clients it is meant for, if that is stated.
    pub(in crate::discovery) hints: Option<Arc<Hints>>,
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
                            hints: endpoint.hints.clone(),
                        };
                        backends.add(port.port, tier, backend);
                    }
                }
            }
        }
        backends.finish()
    }

    /// The endpoints of a service without slices, from the pods that its selector matches. `zone` tells that of a node.
    pub(in crate::discovery) fn from_pods<'a>(
        service: &Service,
        pods: impl Iterator<Item = &'a Pod>,
        zone: impl Fn(&str) -> Option<Arc<str>>,
    ) -> Self {
        let mut backends = Self::default();
        let serves = |pod: &&Pod| (pod.ready || service.publish_not_ready) && selects(service, pod);
        for pod in pods.filter(serves) {
            let tier = if pod.deleting && !service.publish_not_ready { LEAVING } else { READY };
            let hints = hints(service, pod, &zone);
            for port in tcp_ports(service) {
                let Some(target) = target(port, pod) else { continue };
                for ip in &pod.ips {
                    let backend = Backend {
                        addr: SocketAddr::new(*ip, target),
                        node: Some(Arc::clone(&pod.node)),
                        pod: Some(pod.name.clone()),
                        hints: hints.clone(),
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
            own.iter_mut().zip(tiers).for_each(|(own, others)| own.all.extend(others.all));
        }
        *self = std::mem::take(self).finish();
    }

    /// Those behind a port of the service, of one address family: the ready ones, and those to turn to where none is.
    pub(in crate::discovery) fn tiers(&self, port: u16, ipv6: bool) -> impl Iterator<Item = &Tier> {
        self.0.get(&(port, ipv6)).into_iter().flatten()
    }

    fn add(&mut self, port: u16, tier: usize, backend: Backend) {
        self.0.entry((port, backend.addr.is_ipv6())).or_default()[tier].all.push(backend);
    }

    fn finish(mut self) -> Self {
        self.0.values_mut().flatten().for_each(Tier::finish);
        self
    }
}

/// What Kubernetes would state of a pod as an endpoint of the service.
fn hints(service: &Service, pod: &Pod, zone: impl Fn(&str) -> Option<Arc<str>>) -> Option<Arc<Hints>> {
    let distribution = service.distribution?;
    let nodes = match distribution {
        Distribution::SameNode if !pod.node.is_empty() => vec![Arc::clone(&pod.node)],
        _ => Vec::new(),
    };
    Some(Arc::new(Hints { nodes, zones: zone(&pod.node).into_iter().collect() }))
}
