//! What the alerts and the dashboard ask for is there.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use ambit_core::{model::ObjectName, reason::Reason};

use crate::telemetry::{Direction, RemoteCluster, Telemetry, tests::web_to_cart};

const ALERTS: &str = include_str!("../../../../../deploy/alerts/ambit.yaml");
const DASHBOARD: &str = include_str!("../../../../../deploy/charts/ambit/files/dashboard.json");

/// Telemetry of an agent that has seen everything.
fn everything() -> Telemetry {
    let telemetry = Telemetry::new();
    let metrics = &telemetry.0.metrics;
    for reason in [Reason::MtlsRequired, Reason::Timeout] {
        metrics.refused(&web_to_cart(Direction::Inbound), reason);
        metrics.failed(Direction::Inbound, reason);
        metrics.tls_failed(Direction::Inbound, reason);
    }
    metrics.handshake(Direction::Inbound, false);
    metrics.cni_repaired("network");
    telemetry.cni_installed(true);
    telemetry.pending(&["certificates"]);
    let end = SystemTime::now() + Duration::from_secs(60);
    telemetry.certificate(&"spiffe://td1/ns/shop/sa/web".parse().unwrap(), Some(end));
    telemetry.root("ab", Some((SystemTime::now()..end, 1)));
    telemetry.revocation_lists(&[("CN=ca".to_owned(), Some(end))]);
    let west = RemoteCluster { name: "west", synced: true, objects: 7, errors: 3, away: None };
    telemetry.remote_clusters([west].into_iter(), SystemTime::now());
    telemetry.probes([(&ObjectName::new("shop", "web"), 1)].into_iter());
    telemetry
}

#[test]
fn every_series_that_alerts_and_dashboard_ask_for_is_measured() {
    let text = everything().encode();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let measured: BTreeSet<&str> = samples.filter_map(|line| line.split(['{', ' ']).next()).collect();
    let asked = [ALERTS, DASHBOARD].into_iter().flat_map(|text| {
        // Not within the name of another one.
        let names = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        names.filter(|name| name.starts_with("ambit_") && !name.starts_with("ambit_ca_"))
    });
    let asked: BTreeSet<&str> = asked.collect();
    let missing: Vec<_> = asked.difference(&measured).collect();
    assert!(missing.is_empty() && asked.len() > 15, "{missing:?} of {asked:?}");
}

#[test]
fn plaintext_that_is_refused_counts_for_the_namespace_that_refuses_it() {
    let telemetry = Telemetry::new();
    let metrics = &telemetry.0.metrics;
    metrics.refused(&web_to_cart(Direction::Inbound), Reason::MtlsRequired);
    metrics.refused(&web_to_cart(Direction::Outbound), Reason::MtlsRequired);
    metrics.refused(&web_to_cart(Direction::Inbound), Reason::PolicyDenied);
    let text = telemetry.encode();
    assert!(text.contains("ambit_plaintext_refused_total{namespace=\"stock\"} 1\n"), "{text}");
}

#[test]
fn what_is_waited_for_is_there_as_long_as_it_is() {
    let telemetry = Telemetry::new();
    telemetry.pending(&["capture", "certificates"]);
    assert!(telemetry.encode().contains("ambit_not_ready{waits_for=\"certificates\"} 1"));
    telemetry.pending(&["capture"]);
    let text = telemetry.encode();
    assert!(!text.contains("certificates\"} 1") && text.contains("capture\"} 1"), "{text}");
    telemetry.pending(&[]);
    assert!(!telemetry.encode().contains("ambit_not_ready{"));
}
