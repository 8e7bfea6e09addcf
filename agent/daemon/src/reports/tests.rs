//! Against a scripted server, in virtual time.

use serde_json::{Value, json};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle};

use super::*;
use crate::{
    cluster::testing::{Call, Events as Watch, scripted},
    discovery::{PolicyHold, watch_cluster},
};
use ambit_core::discovery::Settings;

struct Bench {
    calls: UnboundedReceiver<Call>,
    watch: Watch,
    reports: JoinHandle<()>,
}

impl Bench {
    /// Reports on `pods`; `resource` has these objects.
    async fn new(resource: &'static str, objects: &[Value], pods: Vec<PodReport>) -> Self {
        let (client, mut calls) = scripted(resource);
        let feed = watch_cluster(&client, Settings::default(), "n1", PolicyHold::default());
        let watch = calls.recv().await.unwrap().stream();
        objects.iter().for_each(|object| watch.send("ADDED", object));
        watch.end_of_list("9");
        feed.synced().await;
        let reports = tokio::spawn(async move { run(client, "n1", feed, || Some(pods.clone())).await });
        Self { calls, watch, reports }
    }

    /// The next write; a watch that begins again is silent.
    async fn next(&mut self) -> Call {
        loop {
            let call = self.calls.recv().await.unwrap();
            if call.method != "GET" {
                return call;
            }
            self.watch = call.stream();
        }
    }

    async fn write(&mut self) -> Call {
        timeout(Duration::from_secs(600), self.next()).await.expect("nothing is written")
    }

    async fn nothing(&mut self, within: u64) {
        let call = timeout(Duration::from_secs(within), self.next()).await;
        assert!(call.is_err(), "written: {}", call.unwrap().body);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.reports.abort();
    }
}

fn report(problem: Option<&str>) -> PodReport {
    PodReport {
        name: ObjectName::new("shop", "web"),
        uid: "u1".into(),
        identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
        problem: problem.map(str::to_owned),
    }
}

fn pod(state: Option<&str>, version: &str) -> Value {
    let annotations = state.map(|state| json!({"ambit.dev/state": state}));
    let metadata = json!({"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": version,
        "annotations": annotations});
    json!({"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"}})
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_annotated_and_has_one_event() {
    let mut bench = Bench::new("pods", &[pod(None, "5")], vec![report(None)]).await;
    let call = bench.write().await;
    assert_eq!((call.method.as_str(), &*call.path), ("PATCH", "/api/v1/namespaces/shop/pods/web/status"));
    assert_eq!(call.body, json!({"metadata": {"uid": "u1", "annotations": {"ambit.dev/state": "enrolled"}}}));
    call.answer(200, &pod(Some("enrolled"), "10"));
    bench.watch.send("MODIFIED", &pod(Some("enrolled"), "10"));
    let call = bench.write().await;
    assert_eq!(
        (call.method.as_str(), &*call.path),
        ("POST", "/apis/events.k8s.io/v1/namespaces/shop/events")
    );
    assert_eq!((&call.body["reason"], &call.body["type"]), (&json!("Enrolled"), &json!("Normal")));
    assert_eq!(call.body["regarding"]["uid"], "u1");
    let body = call.body.clone();
    call.answer(201, &body);
    bench.nothing(60).await;
}

#[tokio::test(start_paused = true)]
async fn the_annotation_of_a_pod_that_left_is_taken_away() {
    let mut bench = Bench::new("pods", &[pod(Some("enrolled"), "5")], vec![]).await;
    let call = bench.write().await;
    assert_eq!(call.body, json!({"metadata": {"uid": "u1", "annotations": {"ambit.dev/state": null}}}));
    // Another pod has taken the name.
    call.refuse(409, "Conflict", "uid mismatch");
    bench.nothing(10).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_makes_an_event_after_a_moment_and_none_again_for_a_while() {
    let annotated = pod(Some("pending"), "5");
    let mut bench = Bench::new("pods", &[annotated], vec![report(Some("no namespace"))]).await;
    let start = Instant::now();
    let call = bench.write().await;
    assert!(start.elapsed() >= Duration::from_secs(4), "an event for a pod in the making");
    assert_eq!((&call.body["reason"], &call.body["type"]), (&json!("EnrolmentFailed"), &json!("Warning")));
    assert!(call.body["note"].as_str().unwrap().ends_with("no namespace"));
    let body = call.body.clone();
    call.answer(201, &body);
    bench.nothing(290).await;
    // Counted in the event that is there, or in a new one.
    assert_eq!(bench.write().await.body["reason"], "EnrolmentFailed");
}

#[tokio::test(start_paused = true)]
async fn writing_that_fails_is_tried_again_ever_less_often() {
    let mut bench = Bench::new("pods", &[pod(None, "5")], vec![report(Some("no"))]).await;
    let mut waits = Vec::new();
    let mut last = Instant::now();
    while waits.len() < 6 {
        let call = bench.write().await;
        if call.path.ends_with("/status") {
            waits.push(last.elapsed().as_secs());
            last = Instant::now();
        }
        call.refuse(403, "Forbidden", "pods/status is forbidden");
    }
    assert!(waits[1] >= 5 && waits.windows(2).all(|pair| pair[1] >= pair[0]) && waits[5] >= 60, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn one_agent_writes_the_status_of_a_policy_unless_another_has() {
    let policy = |version: &str, conditions: Value| {
        json!({"metadata": {"name": "p", "namespace": "shop", "generation": 2, "resourceVersion": version},
            "spec": {"mtls": {"mode": "STRIKT"}}, "status": {"conditions": conditions}})
    };
    let other = json!({"type": "Other", "status": "True"});
    let mut bench = Bench::new("peerauthentications", &[policy("5", json!([other]))], vec![]).await;
    let call = bench.write().await;
    assert_eq!(call.path, "/apis/security.istio.io/v1/namespaces/shop/peerauthentications/p/status");
    assert_eq!((call.asks_for("fieldManager"), call.asks_for("force")), (Some("ambit"), Some("true")));
    assert_eq!(call.body["metadata"]["resourceVersion"], "5");
    let conditions = &call.body["status"]["conditions"];
    assert_eq!((&conditions[0], &conditions[1]["type"]), (&other, &json!("AmbitAccepted")));
    assert_eq!((&conditions[1]["status"], &conditions[1]["reason"]), (&json!("False"), &json!("Invalid")));
    assert_eq!(conditions[1]["observedGeneration"], 2);
    // Another was faster.
    let written = policy("6", conditions.clone());
    call.refuse(409, "Conflict", "the object has been modified");
    bench.watch.send("MODIFIED", &written);
    bench.nothing(120).await;
}
