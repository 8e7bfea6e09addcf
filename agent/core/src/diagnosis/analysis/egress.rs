//! DestinationRules and ServiceEntries: hosts that nothing has, TLS where it cannot be meant, addresses that are somebody else's.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Level, Report, Subject};
use crate::{
    discovery::{
        ClientSettings, ClientTls, DestinationRule, EntryProtocol, HostPattern, Mesh, Prefix, ServiceEntry,
        TrafficPolicy,
    },
    model::ObjectName,
};

/// Services that are looked at for one rule: that of `*.local` speaks of all.
const MAX_SERVICES: usize = 1_000;

pub(super) fn look(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    for rule in mesh.destination_rules() {
        let subject = Subject { kind: "DestinationRule", name: rule.name.clone() };
        host(report, &subject, rule);
        of_services(report, &subject, rule);
        of_entries(report, &subject, rule);
        effect(report, &subject, rule);
    }
    addresses(report);
    hidden_hosts(report);
    workloads(report);
}

/// Whether the rule says anything that agents act upon. One that says nothing may be there to take what a wider one says away.
fn effect(report: &mut Report<'_>, subject: &Subject, rule: &DestinationRule) {
    let mesh = report.cluster.mesh;
    let acts = rule.policy.as_ref().is_some_and(TrafficPolicy::acts);
    let wider = || {
        let same = |other: &HostPattern| match (&rule.host, other) {
            (HostPattern::Exact(host), other) => other.matches(host),
            (own, other) => own == other,
        };
        mesh.destination_rules().any(|other| other.name != rule.name && same(&other.host))
    };
    if !acts && !wider() {
        let message = "agents act upon trafficPolicy.tls (other than DISABLE) and connectionPool.tcp, of which the rule says nothing, \
                       and there is no other rule for its host";
        report.add("rule-without-effect", Level::Info, subject, "spec.trafficPolicy", message.to_owned());
    }
}

/// Hosts of entries for which something else counts.
fn hidden_hosts(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    let mut first: BTreeMap<(&str, &str), &ServiceEntry> = BTreeMap::new();
    let mut entries: Vec<_> = mesh.service_entries().collect();
    entries.sort_by_key(|entry| (entry.created.unwrap_or(i64::MAX), entry.name.clone()));
    for entry in entries {
        let subject = Subject { kind: "ServiceEntry", name: entry.name.clone() };
        for host in &entry.hosts {
            let older = *first.entry((&entry.name.namespace, host)).or_insert(entry);
            let message = match mesh.service_by_host(host) {
                Ok(Some(service)) => format!(
                    "{host} is the host of service {service}, which goes before the entry: choose another host, or remove the entry"
                ),
                _ if older.name != entry.name => format!(
                    "{host} is the host of ServiceEntry {} of the same namespace too, which is older and counts for it",
                    older.name
                ),
                _ => continue,
            };
            report.add("hidden-host", Level::Warning, &subject, "spec.hosts", message);
        }
    }
}

/// WorkloadEntries that are nobody's endpoint.
fn workloads(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    for workload in mesh.workload_entries() {
        let selects = |entry: &ServiceEntry| {
            let selector = entry.selector.as_ref().filter(|selector| !selector.is_empty());
            entry.name.namespace == workload.name.namespace
                && selector.is_some_and(|selector| {
                    selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
                })
        };
        if !mesh.service_entries().any(|entry| selects(entry)) {
            let subject = Subject { kind: "WorkloadEntry", name: workload.name.clone() };
            let message = format!(
                "no ServiceEntry of namespace {} selects it (spec.workloadSelector), and nothing leads to it",
                workload.name.namespace
            );
            report.add("unselected-workload", Level::Warning, &subject, "spec.labels", message);
        }
    }
}

/// Whether there is anything that the rule speaks of.
fn host(report: &mut Report<'_>, subject: &Subject, rule: &DestinationRule) {
    let mesh = report.cluster.mesh;
    let known = hosts(mesh).any(|host| rule.host.matches(&host));
    if !known && rule.policy.is_some() {
        let text = match &rule.host {
            HostPattern::Exact(host) => host.to_string(),
            HostPattern::Suffix(suffix) => format!("*{suffix}"),
        };
        let message = format!(
            "no service and no ServiceEntry has the host {text}, and the rule has no effect: a host outside the cluster needs a \
             ServiceEntry with addresses"
        );
        report.add("unknown-host", Level::Warning, subject, "spec.host", message);
    }
}

/// Hosts that clients can dial by an address.
fn hosts(mesh: &Mesh) -> impl Iterator<Item = String> + '_ {
    let services = mesh.services().map(|service| mesh.host_of_service(&service.name).to_string());
    let dialled = mesh.service_entries().filter(|entry| !entry.addresses.is_empty() || entry.wants_vips());
    services.chain(dialled.flat_map(|entry| entry.hosts.iter().map(ToString::to_string)))
}

fn of_services(report: &mut Report<'_>, subject: &Subject, rule: &DestinationRule) {
    let mesh = report.cluster.mesh;
    let spoken_of = mesh.services().filter(|service| rule.host.matches(&mesh.host_of_service(&service.name)));
    for service in spoken_of.take(MAX_SERVICES) {
        for port in &service.ports {
            let Some(settings) = rule.policy.as_ref().map(|policy| policy.at(port.port)) else { continue };
            let behind = mesh.behind(service, port.port);
            let outside = behind.iter().filter(|(pod, _)| !pod.enrolled).count();
            if settings.tls == ClientTls::IstioMutual && !behind.is_empty() && outside == behind.len() {
                mutual(report, subject, &format!("service {} is", service.name));
            }
            let http = port.application().is_some_and(|name| ["http", "http2", "grpc"].contains(&&*name));
            if originates(settings) && http {
                let message = format!(
                    "port {} of service {} is named after a protocol in the clear ({}), and the rule has agents speak TLS to it: does \
                     its server?",
                    port.port, service.name, port.name
                );
                report.add(
                    "tls-to-plaintext-port",
                    Level::Warning,
                    subject,
                    "spec.trafficPolicy.tls",
                    message,
                );
            }
        }
    }
}

fn of_entries(report: &mut Report<'_>, subject: &Subject, rule: &DestinationRule) {
    let mesh = report.cluster.mesh;
    let speaks_of =
        |entry: &&std::sync::Arc<ServiceEntry>| entry.hosts.iter().any(|host| rule.host.matches(host));
    for entry in mesh.service_entries().filter(speaks_of) {
        for port in &entry.ports {
            let Some(settings) = rule.policy.as_ref().map(|policy| policy.at(port.number)) else { continue };
            if settings.tls == ClientTls::IstioMutual {
                mutual(report, subject, &format!("ServiceEntry {} is", entry.name));
            }
            if !originates(settings) {
                continue;
            }
            let (number, name) = (port.number, &entry.name);
            match port.protocol {
                EntryProtocol::Tls => {
                    let message = format!(
                        "applications speak TLS to port {number} of ServiceEntry {name} themselves, by its protocol, and the rule has \
                         agents speak TLS around it"
                    );
                    report.add("tls-in-tls", Level::Warning, subject, "spec.trafficPolicy.tls", message);
                }
                EntryProtocol::Http | EntryProtocol::Http2 if number == port.target && number != 443 => {
                    let message = format!(
                        "the rule has agents speak TLS to port {number} of ServiceEntry {name}, which speaks in the clear by its \
                         protocol: does it lack a targetPort, such as 443?"
                    );
                    report.add(
                        "tls-to-plaintext-port",
                        Level::Warning,
                        subject,
                        "spec.trafficPolicy.tls",
                        message,
                    );
                }
                _ => {}
            }
        }
    }
}

fn mutual(report: &mut Report<'_>, subject: &Subject, what: &str) {
    let message = format!(
        "demands the mesh's mutual TLS, and {what} not in the mesh: connections to it are refused. Give its host a rule of its own with \
         mode DISABLE or SIMPLE"
    );
    report.add("mtls-outside-mesh", Level::Error, subject, "spec.trafficPolicy.tls.mode", message);
}

fn originates(settings: &ClientSettings) -> bool {
    matches!(settings.tls, ClientTls::Originate(_))
}

/// Addresses of entries that are the cluster's, or another entry's.
fn addresses(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    let mut taken: BTreeMap<IpAddr, String> = BTreeMap::new();
    for service in mesh.services() {
        taken.extend(service.cluster_ips.iter().map(|ip| (*ip, format!("service {}", service.name))));
    }
    let mut stated: BTreeMap<Prefix, &ObjectName> = BTreeMap::new();
    for entry in mesh.service_entries() {
        let subject = Subject { kind: "ServiceEntry", name: entry.name.clone() };
        for prefix in &entry.addresses {
            let pod = prefix.as_single().and_then(|ip| mesh.workload_by_ip(ip));
            let pod = pod.map(|pod| format!("pod {}", pod.name));
            let owner = pod.or_else(|| taken.get(&prefix.as_single()?).cloned());
            let other = stated.insert(*prefix, &entry.name).filter(|other| **other != entry.name);
            let (level, message) = match (owner, other) {
                (Some(owner), _) => (
                    Level::Error,
                    format!(
                        "{prefix} is the address of {owner}: connections to it go there, and never to this entry"
                    ),
                ),
                (None, Some(other)) => (
                    Level::Warning,
                    format!(
                        "{prefix} is an address of ServiceEntry {other} too: clients of other namespaces are led to the older of both"
                    ),
                ),
                (None, None) => continue,
            };
            report.add("overlapping-address", level, &subject, "spec.addresses", message);
        }
    }
}
