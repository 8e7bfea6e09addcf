//! Policies whose definition goes, comes back as another one, or was never there.

use super::*;

fn absent(call: Call) {
    call.refuse(404, "NotFound", "the server could not find the requested resource");
}

/// A definition that is not there, asked for so often that it is believed.
async fn is_absent(bench: &mut Bench) {
    for _ in 0..5 {
        absent(bench.call().await);
    }
}

async fn strict(bench: &Bench, what: &str) -> Arc<World> {
    bench.until(what, |world| world.synced && mode(world) == MtlsMode::Strict).await
}

fn told(world: &World) -> String {
    assert_eq!(world.problems.len(), 1, "{:?}", problems(world));
    problems(world).remove(0)
}

#[tokio::test(start_paused = true)]
async fn policies_outlive_their_definition() {
    let mut bench = Bench::new("peerauthentications");
    let events = bench.list(&[policy("STRICT", "5")], "6").await;
    strict(&bench, "in force").await;
    // What an API server sends when somebody removes the definition: every object goes first.
    bench.definition.ends("first");
    events.send("DELETED", &policy("STRICT", "7"));
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert_eq!(mode(&world), MtlsMode::Strict, "gone with the definition");
    assert!(
        told(&world)
            .contains("was removed: 1 peerauthentications that nobody has stated since stay in force until")
    );
    bench.definition.is_gone();
    drop(events);
    is_absent(&mut bench).await;
    assert_eq!(mode(&*bench.later().await), MtlsMode::Strict, "gone after so many answers");

    // A new definition begins empty: that is nobody's word that there are to be no policies.
    bench.definition.stands("second");
    let events = bench.list(&[], "20").await;
    assert_eq!(mode(&*bench.later().await), MtlsMode::Strict, "a new definition took policies away");
    // One that is stated again is the operator's, who may remove it.
    events.send("ADDED", &policy("PERMISSIVE", "21"));
    let world = bench.until("stated again", |world| mode(world) == MtlsMode::Permissive).await;
    let world = if world.problems.is_empty() {
        world
    } else {
        bench.until("settled", |world| world.problems.is_empty()).await
    };
    assert!(!world.policies.is_empty());
    events.send("DELETED", &policy("PERMISSIVE", "22"));
    bench.until("confirmed", |world| world.policies.is_empty() && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn policies_without_a_definition_go_when_the_time_is_over() {
    let mut bench = Bench::new("peerauthentications");
    drop(bench.list(&[policy("STRICT", "5")], "6").await);
    strict(&bench, "in force").await;
    bench.definition.is_gone();
    let (feed, mut calls) = (bench.feed.clone(), bench.calls);
    let server = tokio::spawn(async move {
        while let Some(call) = calls.recv().await {
            absent(call);
        }
    });
    sleep(HOLD - Duration::from_secs(60)).await;
    assert_eq!(mode(&feed.world()), MtlsMode::Strict);
    sleep(Duration::from_secs(240)).await;
    assert!(
        feed.world().policies.is_empty() && feed.world().problems.is_empty(),
        "{:?}",
        problems(&feed.world())
    );
    server.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_under_a_definition_that_stands_is_gone() {
    let mut bench = Bench::new("peerauthentications");
    let events = bench.list(&[policy("STRICT", "5")], "6").await;
    strict(&bench, "in force").await;
    events.send("DELETED", &policy("STRICT", "7"));
    bench.until("gone", |world| world.policies.is_empty()).await;
    // The same where the watch was cut and it is missing from the next list.
    events.send("ADDED", &policy("STRICT", "8"));
    strict(&bench, "in force again").await;
    events.fail(410, "Expired", "too old resource version");
    drop(events);
    let _events = bench.list(&[], "50").await;
    bench.until("gone from the list", |world| world.policies.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_while_nobody_can_tell_why_stays() {
    let mut bench = Bench::new("peerauthentications");
    let events = bench.list(&[policy("STRICT", "5")], "6").await;
    strict(&bench, "in force").await;
    sleep(Duration::from_secs(5)).await;
    bench.definition.fails(403, "Forbidden");
    events.send("DELETED", &policy("STRICT", "7"));
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert!(told(&world).contains("verb get on customresourcedefinitions"), "{}", told(&world));
    assert_eq!(mode(&world), MtlsMode::Strict);
    bench.definition.stands("first");
    bench.until("judged", |world| world.policies.is_empty() && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_was_never_seen_closes() {
    let mut bench = Bench::new("peerauthentications");
    bench.definition.is_gone();
    is_absent(&mut bench).await;
    let world = strict(&bench, "closed").await;
    assert!(told(&world).contains("which policies there were is not known"), "{}", told(&world));
    bench.definition.stands("first");
    bench.list(&[policy("PERMISSIVE", "5")], "6").await;
    bench.until("known", |world| mode(world) == MtlsMode::Permissive && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_hold_the_api_is_taken_at_its_word() {
    let definition = Definition::default();
    definition.is_gone();
    let mut bench = Bench::holding("peerauthentications", definition, PolicyHold::default());
    is_absent(&mut bench).await;
    let world = bench.until("synced", |world| world.synced).await;
    assert!(world.policies.is_empty() && world.problems.is_empty(), "{:?}", problems(&world));
    bench.definition.stands("first");
    let events = bench.list(&[policy("STRICT", "5")], "6").await;
    strict(&bench, "in force").await;
    bench.definition.is_gone();
    events.send("DELETED", &policy("STRICT", "7"));
    bench.until("gone", |world| world.policies.is_empty()).await;
}

/// An agent that is started again, with the folder that the one before had.
#[tokio::test(start_paused = true)]
async fn policies_outlive_their_definition_and_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let start = |definition: &Definition| {
        let hold = PolicyHold { time: HOLD, folder: Some(folder.path().to_owned()) };
        Bench::holding("peerauthentications", definition.clone(), hold)
    };
    let definition = Definition::default();
    let mut bench = start(&definition);
    let _events = bench.list(&[policy("STRICT", "5")], "6").await;
    strict(&bench, "in force").await;
    let kept = folder.path().join("ambit.last-peerauthentications.json");
    while !kept.exists() {
        sleep(Duration::from_secs(1)).await;
    }
    drop(bench);

    definition.is_gone();
    let mut bench = start(&definition);
    is_absent(&mut bench).await;
    let world = strict(&bench, "kept").await;
    assert_eq!(world.policies.len(), 1, "{:?}", problems(&world));
    assert!(told(&world).contains("stay in force until"), "{}", told(&world));
    drop(bench);

    // The definition was made anew while no agent ran.
    definition.stands("second");
    let mut bench = start(&definition);
    let _events = bench.list(&[], "60").await;
    assert_eq!(mode(&*bench.later().await), MtlsMode::Strict);
    drop(bench);

    // Somebody removed the policy while no agent ran: that is his word.
    std::fs::remove_file(&kept).unwrap();
    let mut bench = start(&definition);
    let _events = bench.list(&[policy("STRICT", "70")], "71").await;
    while !kept.exists() {
        sleep(Duration::from_secs(1)).await;
    }
    drop(bench);
    let mut bench = start(&definition);
    let _events = bench.list(&[], "80").await;
    bench.until("gone", |world| world.synced && world.policies.is_empty()).await;
}

/// A rule that wants TLS is no less a restriction than a policy.
#[tokio::test(start_paused = true)]
async fn rules_for_the_way_out_outlive_their_definition() {
    let object = |name: &str| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": "shop", "resourceVersion": "5"},
            "spec": {"host": "api.example.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}})
    };
    let rules = |world: &World| world.mesh.destination_rules().count();
    let mut bench = Bench::new("destinationrules");
    let events = bench.list(&[object("kept")], "6").await;
    bench.until("in force", |world| world.synced && rules(world) == 1).await;
    bench.definition.ends("first");
    events.send("DELETED", &object("kept"));
    let world = bench.until("told", |world| !world.problems.is_empty()).await;
    assert_eq!(rules(&world), 1, "gone with the definition");
    assert!(told(&world).contains("was removed: 1 destinationrules"), "{}", told(&world));
    bench.definition.is_gone();
    drop(events);
    is_absent(&mut bench).await;
    assert_eq!(rules(&*bench.later().await), 1, "gone after so many answers");
    // One that is removed while its definition stands is gone.
    bench.definition.stands("second");
    let events = bench.list(&[object("kept")], "20").await;
    events.send("DELETED", &object("kept"));
    bench.until("removed", |world| rules(world) == 0 && world.problems.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_kinds_for_the_way_out_is_no_trouble() {
    for resource in ["destinationrules", "serviceentries", "workloadentries"] {
        let mut bench = Bench::new(resource);
        bench.definition.is_gone();
        is_absent(&mut bench).await;
        let world = bench.until("synced", |world| world.synced).await;
        assert!(world.problems.is_empty(), "{resource}: {:?}", problems(&world));
    }
}
