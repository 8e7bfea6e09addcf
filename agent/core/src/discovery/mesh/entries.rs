//! ServiceEntries, WorkloadEntries, DestinationRules and the Secrets that they name, as they come and go.
//!
//! Promises that an address of a pod, a service or a node is never an entry's, and that what a rule wants another way is captured.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::{ByName, Mesh, change, withdraw};
use crate::{
    discovery::{
        Delta, Destination,
        destination_rule::{DestinationRule, HostPattern, TlsSecret},
        service_entry::{EntryPort, EntryProtocol, Prefix, Resolution, ServiceEntry, WorkloadEntry},
        vips::{VipRanges, Vips},
    },
    model::ObjectName,
};

/// What there is of entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    by_name: ByName<ServiceEntry>,
    pub(super) workloads: ByName<WorkloadEntry>,
    /// Those that state one address, oldest first.
    at: HashTrieMapSync<IpAddr, Vec<Arc<ServiceEntry>>>,
    /// Those that state networks.
    ranges: RedBlackTreeMapSync<(Prefix, ObjectName), Arc<ServiceEntry>>,
    /// Those that state a host, oldest first.
    pub(super) by_host: HashTrieMapSync<Arc<str>, Vec<Arc<ServiceEntry>>>,
    /// Addresses of hosts whose entries state none.
    pub(super) vips: Vips,
    /// An entry with a network has to be captured, which takes capturing everything.
    pub(super) captures_a_range: bool,
    pub(super) secrets: HashTrieMapSync<ObjectName, Arc<TlsSecret>>,
}

impl Entries {
    pub(super) fn new(ranges: VipRanges) -> Self {
        Self { vips: Vips::new(ranges), ..Self::default() }
    }
}

impl Mesh {
    /// All ServiceEntries, by name.
    pub fn service_entries(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.entries.by_name.values()
    }

    /// All WorkloadEntries, by name.
    pub fn workload_entries(&self) -> impl Iterator<Item = &Arc<WorkloadEntry>> {
        self.entries.workloads.values()
    }

    /// All DestinationRules, by name.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.rules.iter()
    }

    /// The Secret of that name, if a rule names it.
    pub fn secret(&self, name: &ObjectName) -> Option<&Arc<TlsSecret>> {
        self.entries.secrets.get(name)
    }

    /// The entry whose address a client dials, and the host that it stands for; `None` if the address is of something else.
    /// Where several claim it, one in the client's namespace, else the oldest.
    pub(super) fn entry_at(
        &self,
        dst: SocketAddr,
        namespace: &str,
    ) -> Option<(&Arc<ServiceEntry>, &Arc<str>)> {
        let Entries { at, ranges, .. } = &self.entries;
        if at.is_empty() && ranges.is_empty() {
            return None;
        }
        let single = at.get(&dst.ip()).into_iter().flatten();
        let wide = ranges.iter().filter(|((range, _), _)| range.contains(dst.ip())).map(|(_, entry)| entry);
        let mut claimants: Vec<(&Arc<ServiceEntry>, &Arc<str>)> = single
            .chain(wide)
            .filter(|entry| entry.exported_to.includes(namespace) || *entry.name.namespace == *namespace)
            .filter_map(|entry| Some((entry, self.host_of(entry)?)))
            .collect();
        claimants.sort_by_cached_key(|(entry, _)| (*entry.name.namespace != *namespace, age(entry)));
        let with_port = |(entry, _): &&(&Arc<ServiceEntry>, &Arc<str>)| {
            entry.ports.iter().any(|port| port.number == dst.port())
        };
        claimants.iter().find(with_port).copied()
    }

    /// The first of its hosts that is the entry's own: a service of that name goes before it, and an older entry of its namespace.
    pub(super) fn host_of<'a>(&self, entry: &'a ServiceEntry) -> Option<&'a Arc<str>> {
        entry.hosts.iter().find(|host| {
            let rivals = self.entries.by_host.get(*host).into_iter().flatten();
            let mut near = rivals.filter(|rival| rival.name.namespace == entry.name.namespace);
            self.service_of_host(host).is_none() && near.next().is_none_or(|oldest| oldest.name == entry.name)
        })
    }

    /// Whether clients of a namespace see an entry that says of a port that TLS is spoken there, so that its host can be told by name.
    pub fn has_tls_entry(&self, namespace: &str, port: u16) -> bool {
        self.visible(namespace).any(|entry| tls_port(entry, port).is_some())
    }

    /// The entry that a host is of, wildcards included, by the name that TLS to a port has; an exact host goes before a wildcard.
    pub fn entry_named(
        &self,
        namespace: &str,
        host: &str,
        port: u16,
    ) -> Option<(&Arc<ServiceEntry>, &EntryPort)> {
        let with_port = || self.visible(namespace).filter_map(|entry| Some((entry, tls_port(entry, port)?)));
        let exact = with_port().find(|(entry, _)| entry.hosts.iter().any(|own| **own == *host));
        exact.or_else(|| {
            with_port().find(|(entry, _)| entry.wildcards.iter().any(|suffix| host.ends_with(&**suffix)))
        })
    }

    fn visible(&self, namespace: &str) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.service_entries()
            .filter(move |entry| entry.exported_to.includes(namespace) || *entry.name.namespace == *namespace)
    }

    pub(super) fn put_rule(
        &mut self,
        name: &ObjectName,
        rule: Option<Arc<DestinationRule>>,
        delta: &mut Delta,
    ) {
        let hosts = self.rules.put(name, rule);
        let mut affected = BTreeSet::new();
        for host in &hosts {
            match host {
                HostPattern::Exact(exact) => {
                    if let Some(name) = self.service_of_host(exact) {
                        affected.extend(self.destinations_of(&name));
                        affected.extend(self.endpoints_if_headless(&name));
                    }
                    affected.extend(self.entries_behind(exact));
                }
                HostPattern::Suffix(_) => {
                    let services = self.services.values().filter(|record| host.matches(&record.name.host));
                    for record in services {
                        affected.extend(self.destinations_of(&record.service.name));
                        affected.extend(self.endpoints_if_headless(&record.service.name));
                    }
                    let entries = self.service_entries();
                    let named = entries.filter(|entry| entry.hosts.iter().any(|own| host.matches(own)));
                    affected.extend(named.flat_map(|entry| destinations(entry)));
                }
            }
        }
        self.follow_capture(affected, delta);
        self.follow_ranges(delta);
    }

    pub(super) fn put_entry(
        &mut self,
        name: &ObjectName,
        entry: Option<Arc<ServiceEntry>>,
        delta: &mut Delta,
    ) {
        let before = self.entries.by_name.get(name).cloned();
        let mut affected: BTreeSet<Destination> = BTreeSet::new();
        for entry in before.iter().chain(&entry) {
            affected.extend(destinations(entry));
            // What stood behind it, or stands behind it from now on.
            for host in &entry.hosts {
                affected.extend(self.entries_behind(host));
            }
        }
        if let Some(before) = &before {
            self.unlink_entry(before);
        }
        let mut hosts: BTreeSet<Arc<str>> =
            before.iter().flat_map(|entry| entry.hosts.iter().cloned()).collect();
        if let Some(entry) = entry {
            self.link_entry(&entry);
            hosts.extend(entry.hosts.iter().cloned());
        }
        affected.extend(hosts.iter().flat_map(|host| self.allocate(&name.namespace, host)));
        self.follow_capture(affected, delta);
        self.follow_ranges(delta);
    }

    pub(super) fn put_workload_entry(&mut self, name: &ObjectName, workload: Option<Arc<WorkloadEntry>>) {
        match workload {
            Some(workload) => self.entries.workloads.insert_mut(name.clone(), workload),
            None => {
                self.entries.workloads.remove_mut(name);
            }
        }
    }

    pub(super) fn put_secret(&mut self, name: &ObjectName, secret: Option<Arc<TlsSecret>>) {
        match secret {
            Some(secret) => self.entries.secrets.insert_mut(name.clone(), secret),
            None => {
                self.entries.secrets.remove_mut(name);
            }
        }
    }

    /// Whether a port of an address leads to an entry that has it go another way, for some client.
    pub(super) fn entry_captures(&self, at: SocketAddr) -> bool {
        let mut claimants = self.entries.at.get(&at.ip()).into_iter().flatten();
        claimants.any(|entry| {
            entry.ports.iter().any(|port| port.number == at.port()) && self.leads_elsewhere(entry)
        })
    }

    /// What leads to the entries that state the host of a service.
    pub(super) fn entries_behind(&self, host: &str) -> Vec<Destination> {
        let entries = self.entries.by_host.get(host).into_iter().flatten();
        entries.flat_map(|entry| destinations(entry)).collect()
    }

    /// The service whose host name in the cluster's DNS that is.
    pub(super) fn service_of_host(&self, host: &str) -> Option<ObjectName> {
        let within = host.strip_suffix(&*self.settings.cluster_domain)?.strip_suffix(".svc.")?;
        let (name, namespace) = within.split_once('.')?;
        let name = ObjectName::new(namespace, name);
        self.services.contains_key(&name).then_some(name)
    }

    /// Whether connections to the entry go elsewhere than to what was dialled, or otherwise.
    fn leads_elsewhere(&self, entry: &ServiceEntry) -> bool {
        self.host_of(entry)
            .is_some_and(|host| entry.resolution != Resolution::None || self.rules.act_on(host))
    }

    fn follow_ranges(&mut self, delta: &mut Delta) {
        let captures = self.entries.ranges.values().any(|entry| self.leads_elsewhere(entry));
        if captures != std::mem::replace(&mut self.entries.captures_a_range, captures) {
            delta.reconsider_pods();
        }
    }

    fn link_entry(&mut self, entry: &Arc<ServiceEntry>) {
        let Entries { by_name, at, ranges, by_host, .. } = &mut self.entries;
        let join = |entries: &mut Vec<Arc<ServiceEntry>>| {
            entries.push(Arc::clone(entry));
            entries.sort_by_cached_key(|entry| age(entry));
        };
        by_name.insert_mut(entry.name.clone(), Arc::clone(entry));
        for prefix in &entry.addresses {
            match prefix.as_single() {
                Some(ip) => change(at, &ip, join),
                None => ranges.insert_mut((*prefix, entry.name.clone()), Arc::clone(entry)),
            }
        }
        for host in &entry.hosts {
            change(by_host, host, join);
        }
    }

    fn unlink_entry(&mut self, entry: &ServiceEntry) {
        let Entries { by_name, at, ranges, by_host, .. } = &mut self.entries;
        let leave = |entries: &mut Vec<Arc<ServiceEntry>>| entries.retain(|other| other.name != entry.name);
        by_name.remove_mut(&entry.name);
        for prefix in &entry.addresses {
            match prefix.as_single() {
                Some(ip) => withdraw(at, &ip, Vec::is_empty, leave),
                None => {
                    ranges.remove_mut(&(*prefix, entry.name.clone()));
                }
            }
        }
        for host in &entry.hosts {
            withdraw(by_host, host, Vec::is_empty, leave);
        }
    }
}

pub(super) fn age(entry: &ServiceEntry) -> (i64, ObjectName) {
    (entry.created.unwrap_or(i64::MAX), entry.name.clone())
}

fn tls_port(entry: &ServiceEntry, port: u16) -> Option<&EntryPort> {
    entry.ports.iter().find(|own| own.number == port && own.protocol == EntryProtocol::Tls)
}

/// What is captured of an entry, if anything is: networks cannot be told by their addresses.
fn destinations(entry: &ServiceEntry) -> Vec<Destination> {
    let singles = entry.addresses.iter().filter_map(Prefix::as_single);
    let ports = |ip| entry.ports.iter().map(move |port| Destination::Port(SocketAddr::new(ip, port.number)));
    singles.flat_map(ports).collect()
}

#[cfg(test)]
mod tests;
