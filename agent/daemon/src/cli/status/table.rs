//! The status for people: aligned columns, times as distances from now.

use std::{fmt::Write, time::SystemTime};

use super::view::{
    CertificateView, ClusterView, ConnectionView, IssuerView, PodView, ProblemView, StatusView,
};
use crate::cli::{
    denials,
    moment::{age, until},
    table::{Table, line},
};

/// Denials in a table that is not only of them.
const FEW_DENIALS: usize = 10;

/// Draws everything that `view` has.
pub(super) fn render(view: &StatusView, now: SystemTime) -> String {
    let mut out = String::new();
    heading(&mut out, view, now);
    if let Some(pods) = &view.pods {
        section(&mut out, "PODS", &pods_table(pods));
    }
    if let Some(certificates) = &view.certificates {
        section(&mut out, "CERTIFICATES", &certificates_table(certificates, now));
    }
    // Few meshes have any.
    if let Some(issuers) = view.issuers.as_deref().filter(|issuers| !issuers.is_empty()) {
        section(&mut out, "ISSUERS", &issuers_table(issuers, now));
    }
    if let Some(clusters) = view.clusters.as_deref().filter(|clusters| !clusters.is_empty()) {
        section(&mut out, "CLUSTERS", &clusters_table(clusters, now));
    }
    if let Some(connections) = &view.connections {
        let listed = connections.len() as u64;
        let title = match view.connections_total {
            total if total > listed => {
                format!("CONNECTIONS, the oldest {listed} of {total} (all: ambit status connections)")
            }
            _ => "CONNECTIONS".to_owned(),
        };
        section(&mut out, &title, &connections_table(connections, now));
    }
    if let Some(denials) = &view.denials {
        let few = &denials[..denials.len().min(FEW_DENIALS)];
        let title = match denials.len() {
            more if more > few.len() => "DENIALS, the newest (all: ambit denials)",
            _ => "DENIALS",
        };
        section(&mut out, title, &denials::table(few, false, now));
    }
    if let Some(problems) = &view.problems {
        out.push_str("\nPROBLEMS\n");
        if problems.is_empty() {
            out.push_str("  none\n");
        }
        for problem in problems {
            line(&mut out, &format!("  {}", sentence(problem)));
        }
    }
    out
}

/// What the views have of each section, one table for each node.
pub(super) fn sections(views: &[&StatusView], now: SystemTime) -> Vec<(&'static str, Vec<(String, Table)>)> {
    let of = |table: &dyn Fn(&StatusView) -> Option<Table>| {
        views.iter().filter_map(|view| Some((view.node.clone(), table(view)?))).collect()
    };
    vec![
        ("PODS", of(&|view| view.pods.as_deref().map(pods_table))),
        ("CERTIFICATES", of(&|view| view.certificates.as_deref().map(|list| certificates_table(list, now)))),
        ("ISSUERS", of(&|view| view.issuers.as_deref().map(|list| issuers_table(list, now)))),
        ("CLUSTERS", of(&|view| view.clusters.as_deref().map(|list| clusters_table(list, now)))),
        ("CONNECTIONS", of(&|view| view.connections.as_deref().map(|list| connections_table(list, now)))),
        ("DENIALS", of(&|view| view.denials.as_deref().map(|list| denials::table(list, false, now)))),
        ("PROBLEMS", of(&|view| view.problems.as_deref().map(problems_table))),
    ]
}

fn problems_table(problems: &[ProblemView]) -> Table {
    let mut table = Table::new(["PROBLEM"]);
    for problem in problems {
        table.row([sentence(problem)]);
    }
    table
}

fn heading(out: &mut String, view: &StatusView, now: SystemTime) {
    let ready = match (view.ready, &view.pending[..]) {
        (true, _) => "ready".to_owned(),
        (false, []) => "not ready".to_owned(),
        (false, pending) => format!("not ready, pending: {}", pending.join(", ")),
    };
    let age = view.started.map(|started| format!(", up {}", age(started, now))).unwrap_or_default();
    line(out, &format!("Node      {}", view.node));
    line(out, &format!("Agent     ambit {}, {ready}{age}", view.version));
    line(out, &format!("Policies  {} in force", view.policies));
    // Few ask for it.
    if !["", "off"].contains(&&*view.kernel_tls) {
        line(out, &format!("Kernel TLS  {}", view.kernel_tls));
    }
}

fn section(out: &mut String, title: &str, table: &Table) {
    let _ = write!(out, "\n{title}\n");
    table.draw(out);
}

fn pods_table(pods: &[PodView]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "STATE",
        "IDENTITY",
        "IP",
        "CAPTURED",
        "PASSED",
        "PROBES",
        "REFUSED",
    ]);
    for pod in pods {
        let state = match (&*pod.error, &*pod.hindrance) {
            ("", "NoCertificate") => format!("{}, no certificate", pod.state),
            ("", _) if pod.dns_captured => format!("{}, DNS captured", pod.state),
            ("", _) => pod.state.to_owned(),
            (error, _) => format!("{}: {error}", pod.state),
        };
        table.row([
            pod.namespace.clone(),
            pod.name.clone(),
            state,
            pod.identity.clone(),
            pod.ips.join(","),
            pod.counters.captured.to_string(),
            pod.counters.passed.to_string(),
            pod.counters.probes.to_string(),
            pod.counters.refused.to_string(),
        ]);
    }
    table
}

fn certificates_table(certificates: &[CertificateView], now: SystemTime) -> Table {
    let mut table = Table::new(["IDENTITY", "STATE", "EXPIRES", "RENEWAL", "SERIAL", "LAST ERROR"]);
    for certificate in certificates {
        table.row([
            certificate.identity.clone(),
            certificate.state.to_owned(),
            until(certificate.not_after, now),
            until(certificate.next_renewal, now),
            certificate.serial.clone(),
            certificate.last_error.clone(),
        ]);
    }
    table
}

fn issuers_table(issuers: &[IssuerView], now: SystemTime) -> Table {
    let mut table = Table::new(["ISSUER", "KEYS", "AGE", "FETCHED FROM", "LAST ERROR"]);
    for issuer in issuers {
        let url = if issuer.url.is_empty() { "its OpenID configuration" } else { &issuer.url };
        table.row([
            issuer.issuer.clone(),
            issuer.keys.to_string(),
            issuer.fetched.map(|fetched| age(fetched, now)).unwrap_or_default(),
            url.to_owned(),
            issuer.error.clone(),
        ]);
    }
    table
}

fn clusters_table(clusters: &[ClusterView], now: SystemTime) -> Table {
    let mut table = Table::new([
        "CLUSTER",
        "SECRET",
        "API",
        "TRUST DOMAIN",
        "SYNCED",
        "OBJECTS",
        "LAG",
        "ERRORS",
        "WITHOUT STUB",
        "LAST ERROR",
    ]);
    for cluster in clusters {
        table.row([
            cluster.name.clone(),
            cluster.secret.clone(),
            cluster.server.clone(),
            cluster.trust_domain.clone(),
            synced(cluster, now),
            cluster.objects.to_string(),
            cluster.away.map(|away| age(away, now)).unwrap_or_default(),
            cluster.errors.to_string(),
            cluster.services_without_stub.to_string(),
            cluster.error.clone(),
        ]);
    }
    table
}

/// Since when; of one that has not been read, as of when it is known.
fn synced(cluster: &ClusterView, now: SystemTime) -> String {
    match (cluster.synced, cluster.remembered) {
        (Some(synced), _) => age(synced, now),
        (None, Some(remembered)) => format!("no, as of {} ago", age(remembered, now)),
        (None, None) => "no".to_owned(),
    }
}

fn connections_table(connections: &[ConnectionView], now: SystemTime) -> Table {
    let mut table = Table::new([
        "DIRECTION",
        "CLIENT",
        "SERVER",
        "SERVICE",
        "MTLS",
        "GROUP",
        "PEER IDENTITY",
        "TO SERVER",
        "TO CLIENT",
        "AGE",
    ]);
    for connection in connections {
        let mtls = match connection.security {
            "mutual_tls" => "yes",
            "plaintext" => "no",
            "local_identity" => "on the node",
            other => other,
        };
        table.row([
            connection.direction.to_owned(),
            party(&connection.source_workload, &connection.source_addr),
            party(&connection.destination_workload, &connection.destination_addr),
            connection.service.clone(),
            mtls.to_owned(),
            connection.group.clone(),
            connection.peer_identity.clone(),
            bytes(connection.client_to_server_bytes),
            bytes(connection.server_to_client_bytes),
            connection.opened.map(|opened| age(opened, now)).unwrap_or_default(),
        ]);
    }
    table
}

fn party(workload: &str, addr: &str) -> String {
    if workload.is_empty() { addr.to_owned() } else { format!("{workload} ({addr})") }
}

fn sentence(problem: &ProblemView) -> String {
    let ProblemView { file, object, field, message } = problem;
    let place: Vec<&str> =
        [file, object, field].into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    if place.is_empty() { message.clone() } else { format!("{}: {message}", place.join(": ")) }
}

/// A byte count with three digits or so: `17 B`, `1.5 KiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_short() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
