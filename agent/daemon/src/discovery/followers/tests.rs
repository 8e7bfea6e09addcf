use ambit_core::{discovery::Settings, model::ObjectName, policy::MtlsMode};

use crate::discovery::{
    Feed, Origin,
    folder::{
        documents::{self, Syntax},
        manifest,
    },
    ledger::Ledger,
};

fn feed() -> Feed {
    let feed = Feed::new(Settings::default());
    put(&feed, "namespace", &namespace("enabled"));
    put(&feed, "web", &pod("web", "tier: front"));
    feed.shared.update(Ledger::complete);
    feed
}

fn put(feed: &Feed, file: &str, text: &str) {
    let origin = Origin::file(std::path::Path::new(file));
    let documents = documents::read(text.as_bytes(), Syntax::Yaml);
    feed.shared.update(|ledger| manifest::take(ledger, &origin, documents, &Settings::default()));
}

fn drop_file(feed: &Feed, file: &str) {
    feed.shared.update(|ledger| ledger.forget(&Origin::file(std::path::Path::new(file))));
}

fn namespace(label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{ambit.dev/dataplane: {label}}}}}\n"
    )
}

fn pod(name: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: n1}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

/// A STRICT policy for pods of a tier.
fn strict(name: &str, tier: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{tier: {tier}}}}}, mtls: {{mode: STRICT}}}}\n"
    )
}

fn web(feed: &Feed) -> std::sync::Arc<ambit_core::model::Workload> {
    feed.world().mesh.pod(&ObjectName::new("shop", "web")).unwrap().clone()
}

#[test]
fn only_a_policy_that_changes_the_verdict_is_told() {
    let feed = feed();
    let mut policy = feed.follow_policy(&web(&feed));
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
    put(&feed, "other", &strict("other", "back"));
    assert!(!policy.has_changed().unwrap(), "a policy for other pods was told");
    put(&feed, "own", &strict("own", "front"));
    assert!(policy.has_changed().unwrap());
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Strict);
    // Names come in order where ages do not differ: this one selects the pod, and is not the first.
    put(&feed, "second", &strict("zz", "front"));
    assert!(!policy.has_changed().unwrap(), "a policy without effect was told");
    drop_file(&feed, "own");
    assert_eq!(policy.borrow_and_update().mtls(80).by, Some(ObjectName::new("shop", "zz")));
    drop_file(&feed, "second");
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
}

#[test]
fn labels_that_change_what_applies_are_told() {
    let feed = feed();
    put(&feed, "back", &strict("back", "back"));
    let mut policy = feed.follow_policy(&web(&feed));
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
    put(&feed, "web", &pod("web", "tier: front, version: two"));
    assert!(!policy.has_changed().unwrap(), "labels without effect were told");
    put(&feed, "web", &pod("web", "tier: back"));
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Strict);
    // It is followed under its new labels.
    drop_file(&feed, "back");
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
}

#[test]
fn a_pod_out_of_the_mesh_hears_nothing_until_it_is_back() {
    let feed = feed();
    let mut policy = feed.follow_policy(&web(&feed));
    put(&feed, "namespace", &namespace("disabled"));
    put(&feed, "own", &strict("own", "front"));
    assert!(!policy.has_changed().unwrap(), "a pod outside the mesh was told");
    put(&feed, "namespace", &namespace("enabled"));
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Strict);
    // Gone and back before anyone noticed: who followed it still does.
    let pod_web = pod("web", "tier: front");
    drop_file(&feed, "web");
    drop_file(&feed, "own");
    assert!(!policy.has_changed().unwrap(), "a pod that is gone was told");
    put(&feed, "web", &pod_web);
    assert_eq!(policy.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
}

#[test]
fn another_pod_of_the_name_is_followed_apart() {
    let feed = feed();
    let mut first = feed.follow_policy(&web(&feed));
    put(&feed, "web", &pod("web", "tier: back").replace("u-web", "u-other"));
    put(&feed, "back", &strict("back", "back"));
    assert!(!first.has_changed().unwrap(), "the pod's successor was told of in its place");
    let second = feed.follow_policy(&web(&feed));
    assert_eq!(second.borrow().mtls(80).mode, MtlsMode::Strict);
    assert_eq!(first.borrow_and_update().mtls(80).mode, MtlsMode::Permissive);
    assert!(first.has_changed().is_err() && second.has_changed().is_ok());
}

#[test]
fn nothing_is_kept_for_pods_that_nobody_follows() {
    let feed = feed();
    put(&feed, "db", &pod("db", "tier: back").replace("10.0.0.1", "10.0.0.2"));
    let policy = feed.follow_policy(&web(&feed));
    let other = policy.clone();
    drop(policy);
    let db = feed.world().mesh.pod(&ObjectName::new("shop", "db")).unwrap().clone();
    let _db = feed.follow_policy(&db);
    assert_eq!(feed.shared.audience().followers.0.len(), 2);
    drop(other);
    let _again = feed.follow_policy(&db);
    assert_eq!(feed.shared.audience().followers.0.len(), 1);
}
