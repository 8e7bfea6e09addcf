//! Against a scripted server, in virtual time: what a real one does only when something is wrong with it.

use std::time::Duration;

use ambit_core::{model::Labels, policy::MtlsMode};
use serde_json::{Value, json};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

mod authorization;
mod definition;
mod remotes;

use super::*;
use crate::{
    cluster::testing::{Call, Definition, Events, scripted_under},
    discovery::{World, kinds::Entry},
};

/// How long policies outlive their definition here.
const HOLD: Duration = Duration::from_secs(24 * 3600);

struct Bench {
    feed: Feed,
    calls: UnboundedReceiver<Call>,
    definition: Definition,
}

impl Bench {
    fn new(resource: &'static str) -> Self {
        Self::holding(resource, Definition::default(), PolicyHold { time: HOLD, folder: None })
    }

    fn holding(resource: &'static str, definition: Definition, hold: PolicyHold) -> Self {
        let (client, calls) = scripted_under(resource, definition.clone());
        Self { feed: watch(&client, Settings::default(), hold, None), calls, definition }
    }

    async fn call(&mut self) -> Call {
        timeout(Duration::from_secs(120), self.calls.recv()).await.expect("no request").unwrap()
    }

    /// Answers the next request with a list of these objects, and leaves the watch open.
    async fn list(&mut self, objects: &[Value], version: &str) -> Events {
        let call = self.call().await;
        assert_eq!(call.asks_for("sendInitialEvents"), Some("true"), "{:?}", call.query);
        let events = call.stream();
        objects.iter().for_each(|object| events.send("ADDED", object));
        events.end_of_list(version);
        events
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) -> Arc<World> {
        let mut revisions = self.feed.subscribe();
        let reached = async {
            while !holds(&self.feed.world()) {
                revisions.changed().await.unwrap();
            }
        };
        let reached = timeout(Duration::from_secs(120), reached).await;
        assert!(reached.is_ok(), "{what}: {:?}", problems(&self.feed.world()));
        self.feed.world()
    }

    /// For what must not happen there is nothing to wait for but time.
    async fn later(&self) -> Arc<World> {
        sleep(Duration::from_secs(3)).await;
        self.feed.world()
    }
}

fn problems(world: &World) -> Vec<String> {
    world.problems.iter().map(ToString::to_string).collect()
}

fn pod(name: &str, ip: &str, version: &str) -> Value {
    let metadata = json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": version,
        "creationTimestamp": "2026-01-31T12:00:00Z", "managedFields": [{"manager": "kubelet"}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"podIP": ip}})
}

fn policy(mode: &str, version: &str) -> Value {
    let metadata = json!({"name": "p", "namespace": "shop", "resourceVersion": version, "generation": 3});
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata,
        "spec": {"mtls": {"mode": mode}}})
}

fn has(world: &World, ip: &str) -> bool {
    world.mesh.workload_by_ip(ip.parse().unwrap()).is_some()
}

fn mode(world: &World) -> MtlsMode {
    world.policies.compile_for(&"shop".into(), &Labels::new()).mtls(80).mode
}

#[tokio::test(start_paused = true)]
async fn the_world_is_synced_when_everything_has_been_read() {
    let mut bench = Bench::new("pods");
    let events = bench.call().await.stream();
    events.send("ADDED", &pod("a", "10.0.0.1", "5"));
    assert!(!bench.later().await.synced);
    events.end_of_list("6");
    let world = bench.until("synced", |world| world.synced).await;
    assert!(has(&world, "10.0.0.1"));
    bench.feed.synced().await;
    events.send("ADDED", &pod("b", "10.0.0.2", "7"));
    events.send("MODIFIED", &pod("a", "10.0.0.3", "8"));
    bench
        .until("changes", |world| has(world, "10.0.0.2") && has(world, "10.0.0.3") && !has(world, "10.0.0.1"))
        .await;
    events.send("DELETED", &pod("b", "10.0.0.2", "9"));
    bench.until("deletion", |world| !has(world, "10.0.0.2")).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let mut bench = Bench::new("pods");
    let events = bench.list(&[pod("a", "10.0.0.1", "5")], "6").await;
    events.bookmark("42", &json!({}));
    bench.until("synced", |world| world.synced).await;
    drop(events);
    let call = bench.call().await;
    assert_eq!((call.asks_for("resourceVersion"), call.asks_for("sendInitialEvents")), (Some("42"), None));
    let events = call.stream();
    events.send("ADDED", &pod("b", "10.0.0.2", "43"));
    let world = bench.until("the next change", |world| has(world, "10.0.0.2")).await;
    assert!(has(&world, "10.0.0.1") && world.problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_version_too_old_makes_a_new_list_without_a_gap() {
    let mut bench = Bench::new("pods");
    let events = bench.list(&[pod("a", "10.0.0.1", "5"), pod("gone", "10.0.0.9", "5")], "6").await;
    bench.until("synced", |world| world.synced).await;
    events.fail(410, "Expired", "too old resource version");
    drop(events);
    let events = bench.call().await.stream();
    assert!(events.initial);
    events.send("ADDED", &pod("b", "10.0.0.2", "50"));
    let world = bench.until("the list begins", |world| has(world, "10.0.0.2")).await;
    assert!(has(&world, "10.0.0.1") && has(&world, "10.0.0.9"), "gone before the list was complete");
    events.send("ADDED", &pod("a", "10.0.0.1", "50"));
    events.end_of_list("51");
    let world = bench.until("what is gone", |world| !has(world, "10.0.0.9")).await;
    assert!(has(&world, "10.0.0.1") && has(&world, "10.0.0.2") && world.synced && world.problems.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_is_named_and_asked_for_again() {
    let mut bench = Bench::new("services");
    let message = r#"services is forbidden: User "u" cannot list resource "services""#;
    for _ in 0..2 {
        bench.call().await.refuse(403, "Forbidden", message);
    }
    let world = bench.until("problem", |world| !world.problems.is_empty()).await;
    assert!(!world.synced);
    let [problem] = &problems(&world)[..] else { panic!("{:?}", problems(&world)) };
    for part in ["kubernetes services: ", message, "list and watch on services (apiGroup \"\")"] {
        assert!(problem.contains(part), "{problem}");
    }
    bench.call().await.refuse(403, "Forbidden", message);
    bench.list(&[], "6").await;
    bench.until("synced", |world| world.synced && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn while_the_api_is_away_everything_stays() {
    let mut bench = Bench::new("pods");
    let events = bench.list(&[pod("a", "10.0.0.1", "5")], "6").await;
    bench.until("synced", |world| world.synced).await;
    drop(events);
    // Once is nothing.
    drop(bench.call().await);
    assert!(bench.feed.world().problems.is_empty());
    drop(bench.call().await);
    let world = bench.until("problem", |world| !world.problems.is_empty()).await;
    let reported = problems(&world);
    assert!(
        reported.len() == 1 && reported[0].starts_with("kubernetes API: cannot be read: "),
        "{reported:?}"
    );
    assert!(
        reported[0].contains("connection refused")
            && reported[0].ends_with("; what was known before stays in force")
    );
    for _ in 0..5 {
        bench.call().await.refuse(503, "ServiceUnavailable", "etcd is away");
        assert_eq!(problems(&bench.feed.world()), reported, "reported again in other words");
    }
    assert!(bench.feed.world().synced && has(&bench.feed.world(), "10.0.0.1"));
    // After so many answers with an error it is listed anew; silence on the watch is a good sign.
    let _events = bench.list(&[pod("b", "10.0.0.2", "90")], "91").await;
    let world = bench.until("back", |world| world.problems.is_empty()).await;
    let world = if has(&world, "10.0.0.1") {
        bench.until("gone", |world| !has(world, "10.0.0.1")).await
    } else {
        world
    };
    assert!(has(&world, "10.0.0.2"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_after_trouble_is_a_good_one() {
    let mut bench = Bench::new("pods");
    drop(bench.list(&[pod("a", "10.0.0.1", "5")], "6").await);
    for _ in 0..3 {
        drop(bench.call().await);
    }
    bench.until("problem", |world| !world.problems.is_empty()).await;
    let call = bench.call().await;
    assert_eq!(call.asks_for("resourceVersion"), Some("6"));
    let _events = call.stream();
    bench.until("back", |world| world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_policy_is_strict_and_leaves_others_alone() {
    let mut bench = Bench::new("peerauthentications");
    let events = bench.list(&[policy("STRICT", "5")], "6").await;
    bench.until("in force", |world| world.synced && mode(world) == MtlsMode::Strict).await;
    events.send("MODIFIED", &policy("STRIKT", "7"));
    let world = bench.until("problem", |world| !world.problems.is_empty()).await;
    assert_eq!(
        problems(&world),
        [
            "kubernetes: PeerAuthentication shop/p: spec.mtls.mode: \"STRIKT\" is not one of UNSET, DISABLE, PERMISSIVE, STRICT; \
             until it can be read it counts as STRICT for all that it may select"
        ]
    );
    assert_eq!(mode(&world), MtlsMode::Strict);
    let status = bench.feed.wanted_statuses().iter().next().unwrap().1.clone();
    assert_eq!(
        (status.accepted, status.reason, status.generation, &*status.version),
        (false, "Invalid", Some(3), "7")
    );
    events.send(
        "MODIFIED",
        &json!({"metadata": {"name": "q", "namespace": "shop", "resourceVersion": "8"}, "spec": []}),
    );
    events.send("MODIFIED", &policy("PERMISSIVE", "9"));
    let world = bench
        .until("one good again", |world| {
            problems(world).len() == 1 && problems(world)[0].contains("shop/q: spec: ")
        })
        .await;
    assert_eq!(mode(&world), MtlsMode::Strict, "whom the bad one selects is not known");
    events.send("DELETED", &json!({"metadata": {"name": "q", "namespace": "shop", "resourceVersion": "10"}}));
    bench.until("removed", |world| world.problems.is_empty() && mode(world) == MtlsMode::Permissive).await;
    assert!(bench.feed.wanted_statuses().iter().next().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_streams_no_lists_is_read_page_by_page() {
    let mut bench = Bench::new("pods");
    bench.call().await.refuse(
        422,
        "Invalid",
        "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch",
    );
    let page = |objects: &[Value], next: &str| {
        let metadata = json!({"resourceVersion": "60", "continue": next});
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": objects})
    };
    let call = bench.call().await;
    assert_eq!((call.asks_for("limit"), call.asks_for("watch")), (Some("500"), None));
    let mut bare = pod("a", "10.0.0.1", "5");
    bare.as_object_mut().unwrap().retain(|field, _| !matches!(&**field, "kind" | "apiVersion"));
    call.answer(200, &page(&[bare], "next"));
    let call = bench.call().await;
    assert_eq!(call.asks_for("continue"), Some("next"));
    call.answer(200, &page(&[pod("b", "10.0.0.2", "5")], ""));
    let world = bench.until("synced", |world| world.synced).await;
    assert!(has(&world, "10.0.0.1") && has(&world, "10.0.0.2") && world.problems.is_empty());
    assert_eq!(bench.call().await.asks_for("resourceVersion"), Some("60"));
}

#[tokio::test(start_paused = true)]
async fn a_burst_makes_few_worlds() {
    let mut bench = Bench::new("pods");
    let events = bench.list(&[], "6").await;
    bench.until("synced", |world| world.synced).await;
    let before = *bench.feed.subscribe().borrow();
    for n in 0..2_000_u32 {
        events.send("ADDED", &pod(&format!("p{n}"), &format!("10.1.{}.{}", n / 250, n % 250 + 1), "7"));
    }
    bench.until("all of them", |world| has(world, "10.1.7.250")).await;
    let made = *bench.feed.subscribe().borrow() - before;
    assert!(made < 20, "{made} worlds for one burst");
}

#[tokio::test(start_paused = true)]
async fn the_watches_end_with_the_last_handle() {
    let Bench { feed, mut calls, .. } = Bench::new("pods");
    let call = calls.recv().await.unwrap();
    drop(feed);
    drop(call);
    assert!(
        timeout(Duration::from_secs(120), calls.recv()).await.is_ok_and(|call| call.is_none()),
        "still asking"
    );
}

/// Whether the state of the feed is still the same one, some time after.
async fn is_unchanged(bench: &Bench, world: &Arc<World>, revision: u64) -> bool {
    let later = bench.later().await;
    Arc::ptr_eq(&later, world) && *bench.feed.subscribe().borrow() == revision
}

#[tokio::test(start_paused = true)]
async fn what_nobody_reads_makes_no_new_world() {
    let mut bench = Bench::new("pods");
    let events = bench.list(&[pod("a", "10.0.0.1", "5")], "6").await;
    let world = bench.until("synced", |world| world.synced).await;
    let revision = *bench.feed.subscribe().borrow();
    let mut annotated = pod("a", "10.0.0.1", "7");
    annotated["metadata"]["annotations"] = json!({"example.com/owner": "a team"});
    annotated["status"]["containerStatuses"] = json!([{"restartCount": 1}]);
    events.send("MODIFIED", &annotated);
    assert!(is_unchanged(&bench, &world, revision).await);
    annotated["spec"]["nodeName"] = "n2".into();
    events.send("MODIFIED", &annotated);
    bench.until("a change that counts", |world| world.mesh.pods_on("n2").count() == 1).await;
    assert!(*bench.feed.subscribe().borrow() > revision);
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_policy_makes_no_new_world() {
    let mut bench = Bench::new("peerauthentications");
    let events = bench.list(&[policy("STRIKT", "5")], "6").await;
    let world = bench.until("problem", |world| world.synced && !world.problems.is_empty()).await;
    let revision = *bench.feed.subscribe().borrow();
    let wanted = bench.feed.wanted_statuses().iter().next().unwrap().1.clone();
    let mut written = policy("STRIKT", "7");
    written["status"] = json!({"conditions": [{"type": "AmbitAccepted", "status": "False",
        "reason": wanted.reason, "observedGeneration": 3}]});
    events.send("MODIFIED", &written);
    assert!(is_unchanged(&bench, &world, revision).await);
    assert!(bench.feed.wanted_statuses().iter().next().is_none(), "written, and still wanted");
}

#[test]
fn a_status_is_to_be_written_only_where_it_says_something_else() {
    let judged = |spec: Value, condition: Option<Value>| {
        let mut value = policy("STRICT", "5");
        value["spec"] = spec;
        let other = json!({"type": "Other", "status": "True"});
        value["status"] = json!({"conditions": condition.into_iter().chain([other]).collect::<Vec<_>>()});
        let current = policy_status::CurrentStatus::of(&value);
        let entry = Entry::read(Kind::PeerAuthentication, &value, &Settings::default()).unwrap();
        current.wanted(&entry).map(|status| {
            assert_eq!(status.others.len(), 1, "the conditions of others must stay");
            (status.accepted, status.reason)
        })
    };
    let ours = |status: &str, reason: &str, generation: i64| {
        Some(
            json!({"type": "AmbitAccepted", "status": status, "reason": reason, "observedGeneration": generation}),
        )
    };
    let (good, bad) = (json!({"mtls": {"mode": "STRICT"}}), json!({"mtls": {"mode": "STRIKT"}}));
    let partly = json!({"mtls": {"mode": "DISABLE"}});
    for (spec, condition, expected) in [
        (&good, None, None),
        (&good, ours("True", "Accepted", 1), None),
        (&good, ours("False", "Invalid", 3), Some((true, "Accepted"))),
        (&bad, None, Some((false, "Invalid"))),
        (&bad, ours("False", "Invalid", 3), None),
        (&bad, ours("False", "Invalid", 2), Some((false, "Invalid"))),
        (&partly, None, Some((true, "UnsupportedValue"))),
        (&partly, ours("True", "UnsupportedValue", 3), None),
    ] {
        assert_eq!(judged(spec.clone(), condition.clone()), expected, "{spec} {condition:?}");
    }
}
