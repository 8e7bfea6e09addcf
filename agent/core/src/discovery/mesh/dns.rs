//! What hosts of ServiceEntries are answered to pods that ask for them by DNS, and where the addresses lead that were allocated
//! for them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Mesh,
    choice::Preferences,
    entries::age,
    routing::{Route, RouteError},
};
use crate::{
    discovery::{DNS_CAPTURE_LABEL, Destination, Namespace, service_entry::Prefix, vips::VipHost},
    model::{Labels, ObjectName, Workload},
};

impl Mesh {
    /// Whether DNS of a pod is to be captured: its label says so, else its namespace's, else the installation. A value that is not
    /// known says nothing.
    pub fn captures_dns_of(&self, pod: &ObjectName) -> bool {
        let own = self.pods.get(pod).and_then(|record| stated(&record.pod.labels));
        own.unwrap_or_else(|| self.namespace_captures_dns(self.namespaces.get(&pod.namespace)))
    }

    pub(super) fn namespace_captures_dns(&self, namespace: Option<&Arc<Namespace>>) -> bool {
        let stated = namespace.and_then(|namespace| stated(&namespace.labels));
        stated.unwrap_or(self.settings.dns_capture)
    }

    /// The addresses at which pods of a namespace have a host, in lower case and without a dot at its end, by a ServiceEntry that
    /// they see: its own, or those that were allocated. `None` where none has it or it has no addresses: others know it, if anybody.
    pub fn addresses_of_host(&self, namespace: &str, host: &str) -> Option<Vec<IpAddr>> {
        let rivals = self.entries.by_host.get(host)?;
        if self.service_of_host(host).is_some() {
            return None;
        }
        let visible = rivals
            .iter()
            .filter(|entry| entry.exported_to.includes(namespace) || *entry.name.namespace == *namespace);
        // Of each namespace the oldest has the host.
        let owners = visible.filter(|entry| {
            self.host_owner(&entry.name.namespace, host).is_some_and(|own| own.name == entry.name)
        });
        let entry = owners.min_by_key(|entry| (*entry.name.namespace != *namespace, age(entry)))?;
        let addresses: Vec<IpAddr> = if entry.addresses.is_empty() {
            let key = VipHost { namespace: Arc::clone(&entry.name.namespace), host: host.into() };
            self.entries.vips.of(&key).collect()
        } else {
            entry.addresses.iter().filter_map(Prefix::as_single).collect()
        };
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The addresses that were allocated for a host of a namespace's ServiceEntry.
    pub fn vips_of(&self, namespace: &Arc<str>, host: &Arc<str>) -> Vec<IpAddr> {
        self.entries.vips.of(&VipHost { namespace: Arc::clone(namespace), host: Arc::clone(host) }).collect()
    }

    /// Has a host of a namespace's entries have addresses allocated, if the entry wants it that has the host. Answers with what is
    /// captured otherwise, or may be.
    pub(super) fn allocate(&mut self, namespace: &Arc<str>, host: &Arc<str>) -> Vec<Destination> {
        let owner = self.host_owner(namespace, host).filter(|owner| owner.wants_vips());
        let created = owner.map(|owner| age(owner).0);
        let key = VipHost { namespace: Arc::clone(namespace), host: Arc::clone(host) };
        self.entries.vips.set(&key, created).into_iter().map(Destination::Address).collect()
    }

    /// The way to a host by an address that was allocated for it; `None` for any other address. All of its ports are the host's.
    pub(super) fn route_to_vip(
        &self,
        client: &Workload,
        dst: SocketAddr,
        preferences: &Preferences<'_>,
    ) -> Option<Route> {
        let VipHost { namespace: own, host } = self.entries.vips.holder(dst.ip())?;
        let entry = self.host_owner(own, host)?;
        let (namespace, port) = (&client.name.namespace, dst.port());
        let service = |more: &str| format!("{host} of ServiceEntry {}{more}", entry.name);
        if !entry.exported_to.includes(namespace) && own != namespace {
            let service = service(&format!(", which is not exported to {namespace},"));
            return Some(Route::Refuse(RouteError::NoEndpoint { service, port }));
        }
        Some(match entry.ports.iter().find(|known| known.number == port) {
            Some(known) => self.route_to_entry(client, entry, host, known, dst, preferences),
            None => Route::Refuse(RouteError::UnknownPort { service: service(""), port }),
        })
    }

    /// The entry of a namespace that has a host: the oldest.
    fn host_owner(&self, namespace: &str, host: &str) -> Option<&Arc<crate::discovery::ServiceEntry>> {
        let rivals = self.entries.by_host.get(host)?;
        rivals.iter().find(|entry| *entry.name.namespace == *namespace)
    }
}

fn stated(labels: &Labels) -> Option<bool> {
    match labels.get(DNS_CAPTURE_LABEL)?.as_str() {
        "enabled" => Some(true),
        "disabled" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
