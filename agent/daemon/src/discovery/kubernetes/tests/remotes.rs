//! Secrets that name other clusters, from the API of this one.

use super::*;
use crate::{cluster::testing::scripted, discovery::ClusterStatus};

fn bench() -> Bench {
    let (client, calls) = scripted("secrets");
    let remotes = RemoteClusters {
        namespace: "ambit-system".to_owned(),
        own_name: "east".to_owned(),
        local: ClusterLocal::default(),
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
