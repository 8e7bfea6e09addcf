//! Secrets that name other clusters, from the API of this one.

use std::path::Path;

use ambit_core::model::TrustDomain;

use super::*;
use crate::{
    cluster::testing::scripted,
    discovery::{ClusterStatus, Origin},
};

/// With nothing that an earlier agent knew.
fn bench() -> Bench {
    bench_in(Path::new("/nonexistent"))
}

fn bench_in(folder: &Path) -> Bench {
    let (client, calls) = scripted("secrets");
    let remotes = RemoteClusters {
        namespace: "ambit-system".to_owned(),
        own_name: "east".to_owned(),
        local: ClusterLocal::default(),
        folder: folder.to_owned(),
    };
    let feed = watch(&client, Settings::default(), PolicyHold::default(), Some(remotes));
    Bench { feed, calls, definition: Definition::default() }
}

fn secret(name: &str, cluster: &str, kubeconfig: &str) -> Value {
    let data = json!({cluster: data_encoding::BASE64.encode(kubeconfig.as_bytes())});
    json!({"apiVersion": "v1", "kind": "Secret", "data": data, "metadata": {
        "name": name, "namespace": "ambit-system", "resourceVersion": "5", "labels": {"istio/multiCluster": "true"},
    }})
}

/// Answers with a list of these Secrets, and leaves the watch open.
async fn listed(bench: &mut Bench, secrets: &[Value]) -> Events {
    let call = bench.call().await;
    assert_eq!(call.asks_for("labelSelector"), Some("istio%2FmultiCluster%3Dtrue"));
    call.answer(
        200,
        &json!({"apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "6"}, "items": secrets}),
    );
    bench.call().await.stream()
}

async fn status(bench: &Bench, what: &str, holds: impl Fn(&[ClusterStatus]) -> bool) -> Vec<ClusterStatus> {
    for _ in 0..100 {
        let all = bench.feed.clusters();
        if holds(&all) {
            return all;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: {:?}", bench.feed.clusters());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_other_clusters_without_end() {
    let mut bench = bench();
    let _unanswered = bench.call().await;
    assert!(!bench.later().await.synced, "they have a moment");
    bench.until("synced all the same", |world| world.synced).await;
    assert_eq!(bench.feed.clusters(), []);
}

#[tokio::test(start_paused = true)]
async fn no_other_cluster_is_no_reason_to_wait() {
    let mut bench = bench();
    let begun = tokio::time::Instant::now();
    let _events = listed(&mut bench, &[secret("own", "east", "of this cluster")]).await;
    bench.until("synced", |world| world.synced).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    // It may name this cluster: the same Secrets can be everywhere.
    assert!(bench.feed.clusters().is_empty() && bench.feed.world().problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kubeconfig_that_is_not_taken_is_told_until_the_secret_goes() {
    let mut bench = bench();
    let secrets = [secret("s", "west", "{kind: Config, current-context: none}")];
    let events = listed(&mut bench, &secrets).await;
    let world = bench.until("told", |world| world.synced && !world.problems.is_empty()).await;
    let [problem] = &problems(&world)[..] else { panic!("{:?}", problems(&world)) };
    for part in
        ["cluster west", "Secret ambit-system/s", "its kubeconfig cannot be used", "no context of that name"]
    {
        assert!(problem.contains(part), "{problem}");
    }
    let all = status(&bench, "refused", |all| all.len() == 1).await;
    assert!(
        all[0].synced.is_none() && all[0].error.as_ref().is_some_and(|error| error.contains("no context"))
    );
    events.send("DELETED", &secret("s", "west", ""));
    status(&bench, "gone", <[ClusterStatus]>::is_empty).await;
    bench.until("no longer told", |world| world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_named_and_keeps_nobody() {
    let mut bench = bench();
    bench.call().await.refuse(403, "Forbidden", "secrets is forbidden");
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert!(problems(&world)[0].contains("multicluster.enabled"), "{:?}", problems(&world));
    bench.until("synced", |world| world.synced).await;
}

/// What an earlier agent wrote down of cluster west: a pod in the mesh.
fn remembered(folder: &Path) {
    let lines = [
        json!({"version": 1, "cluster": "west", "trustDomain": "td2", "written": 1_790_000_000}),
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"ambit.dev/dataplane": "enabled"}}}),
        json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "shop"}, "status": {"podIPs": [{"ip": "10.1.0.1"}]}}),
        json!({"objects": 2}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join("ambit.cluster-west.jsonl"), text).unwrap();
}

fn is_in_the_mesh(world: &World, ip: &str) -> bool {
    world.mesh.workload_by_ip(ip.parse().unwrap()).is_some_and(|pod| pod.enrolled)
}

#[tokio::test(start_paused = true)]
async fn what_was_known_of_a_cluster_is_in_force_from_the_first_state_on() {
    let dir = tempfile::tempdir().unwrap();
    remembered(dir.path());
    let mut bench = bench_in(dir.path());
    let unanswered = bench.call().await;
    // Not even the Secrets can be read.
    let world = bench.until("synced", |world| world.synced).await;
    assert!(is_in_the_mesh(&world, "10.1.0.1"));
    let all = status(&bench, "remembered", |all| all.len() == 1).await;
    assert_eq!((&*all[0].name, all[0].trust_domain.as_str(), all[0].objects), ("west", "td2", 2));
    assert!(all[0].synced.is_none() && all[0].remembered.is_some());
    // Its kubeconfig cannot be used: what was known of it before stays.
    let list = json!({"apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "6"},
        "items": [secret("s", "west", "{kind: Config, current-context: none}")]});
    unanswered.answer(200, &list);
    let events = bench.call().await.stream();
    let all = status(&bench, "refused", |all| all[0].error.is_some()).await;
    assert_eq!(all[0].secret, "ambit-system/s");
    let world = bench.later().await;
    assert!(is_in_the_mesh(&world, "10.1.0.1"));
    assert!(dir.path().join("ambit.cluster-west.jsonl").exists());
    events.send("DELETED", &secret("s", "west", ""));
    bench.until("gone", |world: &World| !is_in_the_mesh(world, "10.1.0.1")).await;
    status(&bench, "gone", <[ClusterStatus]>::is_empty).await;
    assert!(!dir.path().join("ambit.cluster-west.jsonl").exists());
}

#[tokio::test(start_paused = true)]
async fn what_was_known_of_a_cluster_that_nobody_names_goes() {
    let dir = tempfile::tempdir().unwrap();
    remembered(dir.path());
    let mut bench = bench_in(dir.path());
    let _events = listed(&mut bench, &[]).await;
    let world = bench.until("synced", |world| world.synced).await;
    status(&bench, "gone", <[ClusterStatus]>::is_empty).await;
    assert!(!is_in_the_mesh(&world, "10.1.0.1"));
    assert!(!dir.path().join("ambit.cluster-west.jsonl").exists());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ambit.cluster-west.jsonl"), "half a li").unwrap();
    let mut bench = bench_in(dir.path());
    let call = bench.call().await;
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert!(problems(&world)[0].contains("what was last known of cluster west cannot be read"));
    // It is told no more once nobody names the cluster.
    call.answer(
        200,
        &json!({"apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "6"}, "items": []}),
    );
    let _events = bench.call().await.stream();
    bench.until("no longer told", |world| world.problems.is_empty()).await;
}

/// Has the cluster say that it has this pod.
fn say(bench: &Bench, ip: &str) {
    let west = Arc::from("west");
    let read = |kind, object: Value| {
        Entry::read(kind, &object, &Settings::default()).unwrap().in_cluster(&west, &ClusterLocal::default())
    };
    let entries = [
        read(
            Kind::Namespace,
            json!({"metadata": {"name": "shop", "labels": {"ambit.dev/dataplane": "enabled"}}}),
        ),
        read(Kind::Pod, pod("web", ip, "5")),
    ];
    bench.feed.shared.update(|ledger| {
        for entry in entries {
            ledger.take(&Origin::Object(entry.key.clone()), vec![entry], Vec::new());
        }
    });
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_written_down_and_what_cannot_be_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let mut bench = bench_in(&folder);
    let _events = listed(&mut bench, &[]).await;
    bench.until("synced", |world| world.synced).await;
    let west = Arc::from("west");
    bench
        .feed
        .shared
        .clusters
        .send_modify(|all| all.begin(&west, "ns/s", String::new(), TrustDomain::default()));
    say(&bench, "10.1.0.1");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("ambit.cluster-west.jsonl");
    bench.later().await;
    assert!(!file.exists(), "it has not been read to its end");
    bench.feed.shared.clusters.send_modify(|all| all.read("west"));
    let written = async |part: &str| {
        for _ in 0..100 {
            if std::fs::read_to_string(&file).is_ok_and(|text| text.contains(part)) {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
        panic!("{part} has not been written");
    };
    written("10.1.0.1").await;
    say(&bench, "10.1.0.2");
    written("10.1.0.2").await;
    std::fs::remove_dir_all(&folder).unwrap();
    say(&bench, "10.1.0.3");
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert!(
        problems(&world)[0].contains("cluster west is not kept over a restart"),
        "{:?}",
        problems(&world)
    );
    std::fs::create_dir(&folder).unwrap();
    written("10.1.0.3").await;
    bench.until("no longer told", |world| world.problems.is_empty()).await;
}
