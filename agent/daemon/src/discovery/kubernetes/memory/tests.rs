use std::net::IpAddr;

use ambit_core::discovery::Destination;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::discovery::{kinds::Stated, ledger::Ledger};

fn west() -> Arc<str> {
    "west".into()
}

fn objects() -> [(Kind, Value); 5] {
    let slice = json!({
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["10.1.0.1"], "nodeName": "n1", "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web"},
                "hints": {"forZones": [{"name": "z"}]}},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ],
    });
    [
        (
            Kind::Namespace,
            json!({"metadata": {"name": "shop", "labels": {"ambit.dev/dataplane": "enabled"}}}),
        ),
        (
            Kind::Pod,
            json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"},
                    "creationTimestamp": "2026-01-31T12:00:00Z", "deletionTimestamp": "2026-01-31T13:00:00Z"},
                "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"ports": [
                    {"name": "http", "containerPort": 8080}, {"containerPort": 9090}]}]},
                "status": {"podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}],
                    "conditions": [{"type": "Ready", "status": "False"}]},
            }),
        ),
        // Nearly nothing is stated.
        (Kind::Pod, json!({"metadata": {"name": "bare", "namespace": "shop"}})),
        (
            Kind::Pod,
            json!({"metadata": {"name": "host", "namespace": "shop", "uid": "u-2"},
                "spec": {"hostNetwork": true, "nodeName": "n1"}, "status": {"phase": "Failed", "podIP": "192.0.2.1"}}),
        ),
        (Kind::EndpointSlice, slice),
    ]
}

/// A ledger that has read these objects of the other cluster.
fn ledger(objects: impl IntoIterator<Item = Entry>) -> Ledger {
    let mut ledger = Ledger::new(Settings::default());
    for entry in objects {
        assert!(matches!(entry.stated, Stated::Good(_)), "{entry:?}");
        ledger.take(&Origin::Object(entry.key.clone()), vec![entry], Vec::new());
    }
    ledger.complete();
    ledger
}

/// As it is read from the API.
fn read_there() -> Mesh {
    let settings = Settings { trust_domain: "td2".parse().unwrap(), ..Settings::default() };
    let read = |(kind, object): (Kind, Value)| {
        Entry::read(kind, &object, &settings).unwrap().in_cluster(&west(), &ClusterLocal::default())
    };
    ledger(objects().map(read)).settle().unwrap().mesh
}

fn memory(mesh: &Mesh) -> (TempDir, Memory) {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(dir.path().to_owned());
    memory.write(&west(), &"td2".parse().unwrap(), mesh).unwrap();
    (dir, memory)
}

fn recall(memory: &Memory) -> (Vec<Remembered>, Vec<String>) {
    let (all, problems) = memory.recall(&Settings::default(), &ClusterLocal::default());
    (all, problems.into_iter().map(|(origin, text)| format!("{origin}: {text}")).collect())
}

/// Replaces the cluster's file by what becomes of it.
fn spoil(memory: &Memory, change: impl FnOnce(&str) -> String) {
    let path = memory.file("west");
    let spoilt = change(&fs::read_to_string(&path).unwrap());
    fs::write(path, spoilt).unwrap();
}

#[test]
fn what_was_known_is_known_again() {
    let before = read_there();
    let (_dir, memory) = memory(&before);
    let (all, problems) = recall(&memory);
    let [remembered] = <[Remembered; 1]>::try_from(all).unwrap();
    assert_eq!((&*remembered.cluster, remembered.trust_domain.as_str(), problems.len()), ("west", "td2", 0));
    assert!(remembered.written.elapsed().unwrap() < Duration::from_secs(60));
    let after = ledger(remembered.entries).settle().unwrap().mesh;
    let known = |mesh: &Mesh| mesh.known_of(&west()).collect::<Vec<Change>>();
    assert_eq!(known(&before).len(), 5);
    assert_eq!(known(&after), known(&before));
    let address: IpAddr = "10.1.0.1".parse().unwrap();
    assert!(after.captured_destinations().any(|captured| captured == Destination::Address(address)));
    let web = after.workload_by_ip(address).unwrap();
    assert_eq!(web.identity.to_string(), "spiffe://td2/ns/shop/sa/web");
    assert_eq!(after.known_of(&"north".into()).count(), 0);
}

#[test]
fn what_is_bad_in_a_file_loses_nothing_that_is_good() {
    let (_dir, memory) = memory(&read_there());
    spoil(&memory, |text| {
        text.replacen("\"10.1.0.1\"}", "\"10.1.0\"}", 1) + "{\"kind\": \"Secret\"}\nno JSON\n"
    });
    let (all, problems) = recall(&memory);
    assert_eq!(all[0].entries.len(), 4, "all but the pod");
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    for part in ["ambit.cluster-west.jsonl", "cluster west", "not all of it", "line 5", "status.podIPs[0].ip"]
    {
        assert!(problem.contains(part), "{part}: {problem}");
    }
    spoil(&memory, |text| text.lines().take(3).map(|line| format!("{line}\n")).collect());
    let (all, problems) = recall(&memory);
    assert_eq!(all[0].entries.len(), 2);
    assert!(problems[0].contains("it ends before its end"), "{problems:?}");
}

#[test]
fn a_file_that_says_nothing_is_told() {
    let (_dir, memory) = memory(&read_there());
    for (content, told) in [
        ("", "it is empty"),
        ("{}\n", "line 1: missing field"),
        ("{\"version\": 2, \"cluster\": \"west\", \"trustDomain\": \"td2\", \"written\": 5}\n", "version 2"),
        (
            "{\"version\": 1, \"cluster\": \"east\", \"trustDomain\": \"td2\", \"written\": 5}\n",
            "cluster \"east\"",
        ),
        (
            "{\"version\": 1, \"cluster\": \"west\", \"trustDomain\": \"A B\", \"written\": 5}\n",
            "not a trust domain",
        ),
    ] {
        spoil(&memory, |_| content.to_owned());
        let (all, problems) = recall(&memory);
        assert!(all.is_empty() && problems.len() == 1 && problems[0].contains(told), "{told}: {problems:?}");
    }
}

#[test]
fn a_cluster_that_is_named_no_more_is_forgotten() {
    let (dir, memory) = memory(&read_there());
    let theirs = dir.path().join("theirs");
    fs::write(&theirs, "").unwrap();
    assert!(memory.retain(|cluster| cluster == "west").is_empty());
    assert_eq!(memory.names().collect::<Vec<_>>(), ["west"]);
    assert_eq!(memory.retain(|_| false), ["west"]);
    assert_eq!(recall(&memory).0.len(), 0);
    assert!(theirs.exists());
}

/// Whoever is in the mesh is known first: what is left out are endpoints.
#[test]
fn what_does_not_fit_is_left_out() {
    let mesh = read_there();
    let header =
        |written| Header { version: VERSION, cluster: "west".into(), trust_domain: "td2".into(), written };
    let mut all = Vec::new();
    assert!(lines(&mut all, &header(5), mesh.known_of(&west()), MAX_FILE).unwrap());
    let mut some = Vec::new();
    let limit = all.len() as u64 - 1;
    assert!(!lines(&mut some, &header(5), mesh.known_of(&west()), limit).unwrap());
    assert!(some.len() as u64 <= limit);
    let (remembered, problem) = read("west", &some, &Settings::default(), &ClusterLocal::default()).unwrap();
    let kinds: Vec<Kind> = remembered.entries.iter().map(|entry| entry.key.kind).collect();
    assert_eq!((kinds, problem), (vec![Kind::Namespace, Kind::Pod, Kind::Pod, Kind::Pod], None));
}

#[test]
fn no_name_leads_out_of_the_folder() {
    for (file, cluster) in [
        ("ambit.cluster-west.jsonl", Some("west")),
        ("ambit.cluster-a.b_c-1.jsonl", Some("a.b_c-1")),
        ("ambit.cluster-.jsonl", None),
        (".ambit.cluster-west.jsonl.ambit-7", None),
        ("ambit.last-peerauthentications.json", None),
    ] {
        assert_eq!(cluster_of(file), cluster, "{file}");
    }
    for name in ["", "../west", "a/b", &"a".repeat(201)] {
        let memory = Memory::new(std::env::temp_dir());
        let error = memory.write(&name.into(), &TrustDomain::default(), &Mesh::default()).unwrap_err();
        assert!(error.to_string().contains("name"), "{error}");
    }
}
