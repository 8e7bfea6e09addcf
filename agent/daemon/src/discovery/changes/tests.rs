use std::{
    pin::pin,
    task::{Context, Waker},
};

use ambit_core::{
    discovery::{Destination, Settings},
    model::ObjectName,
};

use super::*;
use crate::discovery::{
    Origin,
    folder::{
        documents::{self, Syntax},
        manifest,
    },
    ledger::Ledger,
};

fn put(feed: &Feed, file: &str, text: &str) {
    let origin = Origin::file(std::path::Path::new(file));
    let documents = documents::read(text.as_bytes(), Syntax::Yaml);
    feed.shared.update(|ledger| manifest::take(ledger, &origin, documents, &Settings::default()));
}

fn drop_file(feed: &Feed, file: &str) {
    feed.shared.update(|ledger| ledger.forget(&Origin::file(std::path::Path::new(file))));
}

fn pod(name: &str, node: &str, ip: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{podIP: {ip}}}\n"
    )
}

fn feed() -> Feed {
    let feed = Feed::new(Settings::default());
    let label = "labels: {ambit.dev/dataplane: enabled}";
    put(&feed, "shop", &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, {label}}}\n"));
    put(&feed, "a", &pod("a", "n1", "10.0.0.1", ""));
    feed
}

/// What a reader is told, in words; `None` if it is not woken.
fn told(changes: &mut Changes) -> Option<String> {
    let woken = pin!(changes.changed()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
    if !woken {
        return None;
    }
    let (_, delta) = changes.take();
    let ips = |destinations: Vec<_>| {
        let text = |destination| match destination {
            Destination::Address(ip) => ip.to_string(),
            other => format!("{other:?}"),
        };
        destinations.into_iter().map(text).collect::<Vec<_>>().join(" ")
    };
    let pods: Vec<_> = delta.pods().map(|(name, _)| name.to_string()).collect();
    Some(format!("+{} -{} {}", ips(delta.begun().collect()), ips(delta.ended().collect()), pods.join(" ")))
}

#[test]
fn the_first_complete_world_wakes_and_is_not_told_piece_by_piece() {
    let feed = feed();
    let mut changes = feed.changes("n1");
    put(&feed, "b", &pod("b", "n1", "10.0.0.2", ""));
    assert_eq!(told(&mut changes), None);
    feed.shared.update(Ledger::complete);
    assert_eq!(told(&mut changes).as_deref(), Some("+ - "));
    assert_eq!(changes.take().0.mesh.captured_destinations().count(), 2);
}

#[test]
fn a_reader_is_told_what_differs_and_concerns_its_node() {
    let feed = feed();
    feed.shared.update(Ledger::complete);
    let mut changes = feed.changes("n1");
    put(&feed, "a", &pod("a", "n1", "10.0.0.1", "version: two"));
    assert_eq!(told(&mut changes).as_deref(), Some("+ - shop/a"));
    put(&feed, "far", &pod("far", "n2", "10.0.0.9", ""));
    assert_eq!(told(&mut changes).as_deref(), Some("+10.0.0.9 - "));
    // Nobody is woken for what another node's pods bear.
    put(&feed, "far", &pod("far", "n2", "10.0.0.9", "version: two"));
    assert_eq!(told(&mut changes), None);
    put(&feed, "far", &pod("far", "n1", "10.0.0.9", ""));
    assert_eq!(told(&mut changes).as_deref(), Some("+ - shop/far"));
}

#[test]
fn what_waits_is_merged() {
    let feed = feed();
    feed.shared.update(Ledger::complete);
    let mut changes = feed.changes("n1");
    for round in 0..3 {
        put(&feed, "b", &pod("b", "n1", "10.0.0.2", &format!("round: r{round}")));
        drop_file(&feed, "b");
    }
    assert_eq!(told(&mut changes).as_deref(), Some("+ - "), "what was undone is told");
    put(&feed, "b", &pod("b", "n1", "10.0.0.2", ""));
    put(&feed, "b", &pod("b", "n1", "10.0.0.3", ""));
    drop_file(&feed, "a");
    let (world, delta) = changes.take();
    let address = |ip: &str| Destination::Address(ip.parse().unwrap());
    assert_eq!(delta.begun().collect::<Vec<_>>(), [address("10.0.0.3")]);
    assert_eq!(delta.ended().collect::<Vec<_>>(), [address("10.0.0.1")]);
    assert!(world.mesh.pod(&ObjectName::new("shop", "a")).is_none());
}
