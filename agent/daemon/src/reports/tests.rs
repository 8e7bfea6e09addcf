//! Against a scripted server, in virtual time.

use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinHandle, time::sleep};

use super::*;
use crate::{
    cluster::testing::{Call, Events as Watch, scripted},
    discovery::{PolicyHold, watch_cluster},
};
use ambit_core::discovery::Settings;

struct Bench {
    calls: UnboundedReceiver<Call>,
    watch: Watch,
    pods: Arc<Mutex<Vec<PodReport>>>,
    reports: JoinHandle<()>,
}

impl Bench {
    /// Reports on `pods`; `resource` has these objects.
    async fn new(resource: &'static str, objects: &[Value], pods: Vec<PodReport>) -> Self {
        let (client, mut calls) = scripted(resource);
        let feed = watch_cluster(&client, Settings::default(), PolicyHold::default(), None);
        let watch = calls.recv().await.unwrap().stream();
        objects.iter().for_each(|object| watch.send("ADDED", object));
        watch.end_of_list("9");
        feed.synced().await;
        let pods = Arc::new(Mutex::new(pods));
        let reported = pods.clone();
        let known = move || Some(reported.lock().unwrap().clone());
        let reports = tokio::spawn(async move { run(client, "n1", feed, known).await });
        Self { calls, watch, pods, reports }
    }

    /// From now on these pods are reported on.
    fn reported(&self, pods: Vec<PodReport>) {
        *self.pods.lock().unwrap() = pods;
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

    /// Until the world has heard of a change.
    async fn settled(&self) {
        sleep(Duration::from_millis(200)).await;
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

fn report(uid: &str, problem: Option<&str>) -> PodReport {
    PodReport {
        name: ObjectName::new("shop", "web"),
        uid: uid.into(),
        identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
        hindrance: problem.map(|why| Hindrance::Enrolment(why.to_owned())),
    }
}

fn pod(dataplane: &str, version: &str) -> Value {
    let metadata = json!({"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": version,
        "labels": {"ambit.dev/dataplane": dataplane}});
    json!({"metadata": metadata, "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"}})
}

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/shop/events";

/// Demands that the next write is an event of this reason; answers it with `code`.
async fn event(bench: &mut Bench, reason: &str, code: u16) -> Value {
    let call = bench.write().await;
    assert_eq!((call.method.as_str(), &*call.path), ("POST", EVENTS), "what is there is never changed");
    let body = call.body.clone();
    assert_eq!(body["reason"], reason, "{body}");
    assert_eq!((&body["regarding"]["kind"], &body["regarding"]["uid"]), (&json!("Pod"), &json!("u1")));
    match code {
        201 => call.answer(201, &body),
        409 => call.refuse(409, "AlreadyExists", "it is there"),
        _ => call.refuse(code, "Forbidden", "events are forbidden"),
    }
    body
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_enrolled_has_one_event_and_one_that_leaves_another() {
    let mut bench = Bench::new("pods", &[pod("enabled", "5")], vec![]).await;
    sleep(2 * PERIOD).await;
    bench.reported(vec![report("u1", None)]);
    let first = event(&mut bench, "Enrolled", 201).await;
    assert_eq!((&first["type"], &first["metadata"]["name"]), (&json!("Normal"), &json!("web.ambit-u1")));
    assert!(first["note"].as_str().unwrap().ends_with("spiffe://td/ns/shop/sa/web"), "{first}");
    bench.nothing(60).await;
    bench.watch.send("MODIFIED", &pod("disabled", "6"));
    bench.settled().await;
    bench.reported(vec![]);
    event(&mut bench, "LeftMesh", 201).await;
    bench.nothing(60).await;
    // It comes back: the name of the first event is taken.
    bench.watch.send("MODIFIED", &pod("enabled", "7"));
    bench.settled().await;
    bench.reported(vec![report("u1", None)]);
    event(&mut bench, "Enrolled", 409).await;
    let again = event(&mut bench, "Enrolled", 201).await;
    assert_ne!(again["metadata"]["name"], first["metadata"]["name"]);
    bench.nothing(60).await;
    // A pod that ends has not left the mesh.
    bench.watch.send("DELETED", &pod("enabled", "8"));
    bench.settled().await;
    bench.reported(vec![]);
    bench.nothing(60).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_agent_has_told_is_not_told_again() {
    let mut bench = Bench::new("pods", &[pod("enabled", "5")], vec![report("u1", None)]).await;
    event(&mut bench, "Enrolled", 409).await;
    bench.nothing(600).await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_makes_an_event_after_a_moment_and_none_again_for_a_while() {
    let mut bench =
        Bench::new("pods", &[pod("enabled", "5")], vec![report("u1", Some("no namespace"))]).await;
    let start = Instant::now();
    let told = event(&mut bench, "EnrolmentFailed", 201).await;
    assert!(start.elapsed() >= Duration::from_secs(4), "an event for a pod in the making");
    assert!(told["type"] == "Warning" && told["note"].as_str().unwrap().ends_with("no namespace"), "{told}");
    bench.nothing(290).await;
    event(&mut bench, "EnrolmentFailed", 201).await;
    bench.reported(vec![report("u1", None)]);
    event(&mut bench, "Enrolled", 201).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_certificate_has_an_event_and_another_when_it_has_one() {
    let refused = |ago: u32| {
        let why = format!("the issuer refuses: no entry ({ago} s ago)");
        vec![PodReport { hindrance: Some(Hindrance::Certificate(why)), ..report("u1", None) }]
    };
    let mut bench = Bench::new("pods", &[pod("enabled", "5")], refused(1)).await;
    let told = event(&mut bench, "NoCertificate", 201).await;
    assert!(told["type"] == "Warning" && told["note"].as_str().unwrap().contains("no entry"), "{told}");
    // The next attempt fails in the same way.
    bench.reported(refused(2));
    bench.nothing(200).await;
    bench.reported(vec![report("u1", None)]);
    event(&mut bench, "Enrolled", 201).await;
}

#[tokio::test(start_paused = true)]
async fn a_crowd_of_pods_is_told_of_little_by_little() {
    let pods = (0..100).map(|number| report(&format!("u{number}"), None)).collect();
    let mut bench = Bench::new("pods", &[], pods).await;
    let start = Instant::now();
    let mut at = Vec::new();
    while at.len() < 50 {
        let call = bench.write().await;
        at.push(start.elapsed().as_secs());
        let body = call.body.clone();
        call.answer(201, &body);
    }
    assert!(at[24] <= 2, "what may come at once: {at:?}");
    assert!(at[49] >= 140, "25 more, one in six seconds: {at:?}");
}

#[tokio::test(start_paused = true)]
async fn writing_that_fails_is_tried_again_ever_less_often() {
    let mut bench = Bench::new("pods", &[pod("enabled", "5")], vec![report("u1", Some("no"))]).await;
    let mut waits = Vec::new();
    let mut last = Instant::now();
    while waits.len() < 6 {
        event(&mut bench, "EnrolmentFailed", 403).await;
        waits.push(last.elapsed().as_secs());
        last = Instant::now();
    }
    assert!(waits[1] >= 5 && waits.windows(2).all(|pair| pair[1] >= pair[0]), "{waits:?}");
    assert!(waits[5] >= 60, "{waits:?}");
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

#[tokio::test(start_paused = true)]
async fn who_writes_the_status_of_a_policy_makes_an_event_of_it() {
    let policy = json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "p1", "generation": 2, "resourceVersion": "5"},
        "spec": {"mtls": {"mode": "DISABLE"}},
    });
    let mut bench = Bench::new("peerauthentications", &[policy], vec![]).await;
    let call = bench.write().await;
    let body = call.body.clone();
    assert!(call.path.ends_with("/status"), "{}", call.path);
    call.answer(200, &body);
    let call = bench.write().await;
    let event = call.body.clone();
    assert_eq!((call.method.as_str(), &*call.path), ("POST", EVENTS));
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("UnsupportedValue")));
    let regarding = &event["regarding"];
    assert_eq!((&regarding["kind"], &regarding["uid"]), (&json!("PeerAuthentication"), &json!("p1")));
    assert!(event["note"].as_str().unwrap().contains("effect of PERMISSIVE"), "{event}");
    call.answer(201, &event);
}
