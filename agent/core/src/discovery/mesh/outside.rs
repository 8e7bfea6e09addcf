//! From an original destination to what is no pod and no service: entries, and whether a client may go out at all.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Mesh, Preferences,
    routing::{ClientRule, Endpoint, Named, Route, RouteError},
};
use crate::{
    discovery::{
        OUTBOUND_POLICY_LABEL, OutboundPolicy,
        destination_rule::ClientSettings,
        rules::Target,
        service_entry::{EntryAddress, EntryPort, EntryProtocol, Resolution, ServiceEntry},
    },
    model::{PodAddr, ServiceName, Workload},
};

impl Mesh {
    /// Where pods of a namespace may connect to. A value of the label that is not known counts as the stricter one.
    pub fn outbound_policy(&self, namespace: &str) -> OutboundPolicy {
        let stated = self.namespaces.get(namespace).and_then(|own| own.labels.get(OUTBOUND_POLICY_LABEL));
        match stated.map(String::as_str) {
            None | Some("") => self.settings.outbound_policy,
            Some("ALLOW_ANY") => OutboundPolicy::AllowAny,
            Some(_) => OutboundPolicy::RegistryOnly,
        }
    }

    /// Whether all that pods of a namespace dial has to be captured, be it in the mesh or not.
    pub fn captures_everything_of(&self, namespace: &str) -> bool {
        self.settings.observe_outbound
            || self.entries.captures_a_range
            || !self.unread.is_empty()
            || self.outbound_policy(namespace) == OutboundPolicy::RegistryOnly
    }

    /// Whether connections to outside are to be counted and logged.
    pub fn observes_outbound(&self) -> bool {
        self.settings.observe_outbound
    }

    /// The way to a destination that is none of the cluster's.
    pub(super) fn route_outside(
        &self,
        client: &Workload,
        dst: SocketAddr,
        preferences: &Preferences<'_>,
    ) -> Route {
        let namespace = &*client.name.namespace;
        if let Some(allocated) = self.route_to_vip(client, dst, preferences) {
            return allocated;
        }
        let found = self.entry_at(dst, namespace).and_then(|(entry, host)| {
            Some((entry, host, entry.ports.iter().find(|port| port.number == dst.port())?))
        });
        match found {
            Some((entry, host, port)) => self.route_to_entry(client, entry, host, port, dst, preferences),
            None if self.outbound_policy(namespace) == OutboundPolicy::AllowAny || self.is_near(dst) => {
                Route::Passthrough
            }
            None => {
                Route::Refuse(RouteError::NotRegistered { destination: dst, namespace: namespace.into() })
            }
        }
    }

    /// The way to an address that a name has led to.
    pub fn route_named(&self, client: &Workload, named: &Named, to: SocketAddr, random: u64) -> Route {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let within = self.known_route(client, to, &Preferences::random(random));
        let route = within.unwrap_or_else(|| match self.unknown(&named.service, to) {
            Some(endpoint) => Route::Plain(endpoint),
            None => Route::Passthrough,
        });
        let as_named = |endpoint: Endpoint| Endpoint {
            service: Some(named.service.clone()),
            rule: named.rule.clone().or(endpoint.rule),
            identities: named.identities.clone(),
            ..endpoint
        };
        match route {
            Route::Tunnel(endpoint) => Route::Tunnel(as_named(endpoint)),
            Route::Plain(endpoint) => Route::Plain(as_named(endpoint)),
            other => other,
        }
    }

    /// What rules say of a client's connections to a port of a service or entry.
    pub(super) fn client_settings(
        &self,
        client: &Workload,
        service: &ServiceName,
        port: u16,
    ) -> Option<Arc<ClientSettings>> {
        let target = Target { namespace: &service.name.namespace, host: &service.host, port };
        self.rules.settings(client, target, &self.settings.root_namespace)
    }

    pub(super) fn route_to_entry(
        &self,
        client: &Workload,
        entry: &Arc<ServiceEntry>,
        host: &Arc<str>,
        port: &EntryPort,
        dst: SocketAddr,
        preferences: &Preferences<'_>,
    ) -> Route {
        let service = ServiceName { name: entry.name.clone(), host: Arc::clone(host) };
        let rule = self.client_settings(client, &service, port.number).map(|settings| {
            Box::new(ClientRule {
                settings,
                host: Arc::clone(host),
                names: entry.subject_alt_names.clone(),
                http2: port.protocol == EntryProtocol::Http2,
            })
        });
        let first_only = entry.resolution == Resolution::DnsRoundRobin;
        let to = |names: Vec<(Arc<str>, u16)>| Named {
            names,
            first_only,
            service: service.clone(),
            rule: rule.clone(),
            identities: entry.identities.clone(),
        };
        match entry.resolution {
            Resolution::None => match self.unknown(&service, dst) {
                Some(endpoint) => Route::Plain(Endpoint { rule, ..endpoint }),
                None => Route::Passthrough,
            },
            Resolution::Dns | Resolution::DnsRoundRobin
                if entry.endpoints.is_empty() && entry.selector.is_none() =>
            {
                Route::Resolve(to(vec![(Arc::clone(host), port.target)]))
            }
            Resolution::Static | Resolution::Dns | Resolution::DnsRoundRobin => {
                let endpoints = self.endpoints_of(entry, port);
                // Those of the family that was dialled go before others.
                let same = |(address, _): &&(EntryAddress, u16)| match address {
                    EntryAddress::Ip(ip) => ip.is_ipv4() == dst.is_ipv4(),
                    EntryAddress::Name(_) => true,
                };
                let near: Vec<_> = endpoints.iter().filter(same).collect();
                let near: Vec<_> = if near.is_empty() { endpoints.iter().collect() } else { near };
                let failing = |at: SocketAddr| (preferences.failing)(at);
                match preferred(&near, preferences.tried, &failing, |count| preferences.one_of(count)) {
                    Some((EntryAddress::Ip(ip), port)) => {
                        let at = SocketAddr::new(*ip, *port);
                        self.route_named(client, &to(Vec::new()), at, preferences.random)
                    }
                    Some((EntryAddress::Name(name), port)) => {
                        Route::Resolve(to(vec![(Arc::clone(name), *port)]))
                    }
                    None => Route::Refuse(RouteError::NoEndpoint {
                        service: format!("{} of ServiceEntry {}", host, entry.name),
                        port: dst.port(),
                    }),
                }
            }
        }
    }

    /// The endpoints behind a port of an entry: its own, and the WorkloadEntries and pods of its namespace that it selects.
    fn endpoints_of(&self, entry: &ServiceEntry, port: &EntryPort) -> Vec<(EntryAddress, u16)> {
        let mut all: Vec<_> =
            entry.endpoints.iter().map(|endpoint| (endpoint.address.clone(), endpoint.port(port))).collect();
        let Some(selector) = entry.selector.as_ref().filter(|selector| !selector.is_empty()) else {
            return all;
        };
        let namespace = &*entry.name.namespace;
        let selects = |labels: &crate::model::Labels| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let workloads = self.entries.workloads.values();
        let selected = workloads.filter(|own| *own.name.namespace == *namespace && selects(&own.labels));
        all.extend(selected.map(|own| (own.endpoint.address.clone(), own.endpoint.port(port))));
        for pod in self.pods_in(namespace) {
            if pod.pod.ready && !pod.pod.terminal && !pod.pod.host_network && selects(&pod.pod.labels) {
                all.extend(pod.pod.ips.iter().map(|ip| (EntryAddress::Ip(*ip), port.target)));
            }
        }
        all
    }

    /// An endpoint of which no pod is known.
    fn unknown(&self, service: &ServiceName, at: SocketAddr) -> Option<Endpoint> {
        Some(Endpoint {
            addr: PodAddr(at),
            workload: Arc::new(self.unknown_workload(&service.name.namespace, at.ip(), None)?),
            service: Some(service.clone()),
            kept_for: None,
            rule: None,
            identities: None,
        })
    }

    /// Whether a destination that is not registered is one that pods cannot do without: a node, whose kubelet and host-network pods
    /// are the cluster's own, and DNS at a link-local address, as NodeLocal DNSCache has it.
    fn is_near(&self, dst: SocketAddr) -> bool {
        const DNS: u16 = 53;
        let link_local = match dst.ip() {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        self.node_ips.contains_key(&dst.ip()) || dst.ip().is_loopback() || (link_local && dst.port() == DNS)
    }
}

/// One of the endpoints: none that was tried, and one that failed lately only where all have.
fn preferred<'a>(
    endpoints: &[&'a (EntryAddress, u16)],
    tried: &[SocketAddr],
    failing: &dyn Fn(SocketAddr) -> bool,
    one_of: impl Fn(usize) -> usize,
) -> Option<&'a (EntryAddress, u16)> {
    let at = |(address, port): &(EntryAddress, u16)| match address {
        EntryAddress::Ip(ip) => Some(SocketAddr::new(*ip, *port)),
        EntryAddress::Name(_) => None,
    };
    let untried = endpoints.iter().copied().filter(|own| at(own).is_none_or(|at| !tried.contains(&at)));
    let untried: Vec<_> = untried.collect();
    let fresh: Vec<_> = untried.iter().copied().filter(|own| at(own).is_none_or(|at| !failing(at))).collect();
    let best = if fresh.is_empty() { untried } else { fresh };
    best.get(one_of(best.len())).copied()
}
