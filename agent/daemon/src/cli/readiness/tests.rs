use ambit_proto::admin::v1::{ObservationsResponse, ObservedDestination, ObservedSource, SourceState};

use super::*;

const NOW: u64 = 1_900_000_000;

fn ago(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - seconds)
}

fn source(pod: &str, identity: &str, state: SourceState, last: u64) -> ObservedSource {
    let (namespace, workload) = pod.split_once('/').unwrap_or_default();
    ObservedSource {
        port: 80,
        party: Some(proto::Party {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            identity: identity.to_owned(),
            ip: "10.0.0.9".to_owned(),
            ..proto::Party::default()
        }),
        connections: 3,
        first_seen: Some(ago(last + 10).into()),
        last_seen: Some(ago(last).into()),
        state: state.into(),
        ..ObservedSource::default()
    }
}

fn view(nodes: Vec<Vec<ObservedSource>>) -> View {
    let agent = |sources| ObservationsResponse {
        since: Some(ago(1000).into()),
        destinations: vec![ObservedDestination {
            namespace: "shop".to_owned(),
            workload: "cart".to_owned(),
            pods: 1,
            sources,
            ..ObservedDestination::default()
        }],
        ..ObservationsResponse::default()
    };
    let answers = Answers::of(nodes.into_iter().map(agent).collect());
    View::new(&answers, |_| true, Duration::from_secs(3600), ago(0))
}

fn blocking(view: &View) -> Vec<String> {
    let sources = view.destinations.iter().flat_map(|destination| &destination.sources);
    sources.filter(|source| source.blocks).map(|source| source.party.name()).collect()
}

#[test]
fn who_comes_in_plaintext_blocks_and_who_has_joined_does_not() {
    let meshed = || source("shop/web", "spiffe://td1/ns/shop/sa/web", SourceState::InMesh, 0);
    for (sources, expected) in [
        (vec![], vec![]),
        (vec![meshed()], vec![]),
        (vec![meshed(), source("old/c", "", SourceState::Outside, 60)], vec!["old/c"]),
        (vec![source("old/c", "", SourceState::Gone, 60)], vec!["old/c"]),
        (vec![source("", "", SourceState::Unknown, 60)], vec!["10.0.0.9"]),
        // It has joined; a moment ago; and with a connection from before.
        (vec![source("old/c", "", SourceState::InMesh, 60)], vec![]),
        (vec![source("old/c", "", SourceState::InMesh, 1)], vec!["old/c"]),
        (vec![ObservedSource { open: 1, ..source("old/c", "", SourceState::InMesh, 60) }], vec!["old/c"]),
        // Not within the window; refused already.
        (vec![source("old/c", "", SourceState::Outside, 3700)], vec![]),
        (vec![ObservedSource { strict: true, ..source("old/c", "", SourceState::Outside, 60) }], vec![]),
    ] {
        let view = view(vec![sources]);
        assert_eq!(blocking(&view), expected, "{view:#?}");
        assert_eq!((view.ready, view.destinations[0].ready), (expected.is_empty(), expected.is_empty()));
    }
}

#[test]
fn nodes_and_pods_of_one_workload_are_put_together() {
    let view = view(vec![
        vec![source("old/c", "", SourceState::Outside, 60), source("old/d", "", SourceState::Outside, 70)],
        vec![source("old/c", "", SourceState::Outside, 20)],
    ]);
    assert_eq!(blocking(&view), ["old/c", "old/d"]);
    let c = &view.destinations[0].sources[0];
    assert_eq!((c.connections, c.last_seen, c.first_seen), (6, Some(Moment(ago(20))), Some(Moment(ago(70)))));
    assert_eq!(view.destinations[0].why, "2 sources come in plaintext");
    let text = view.table(ago(0));
    assert!(text.contains("shop/cart") && text.contains("old/d (10.0.0.9)"), "{text}");
}

#[test]
fn where_requests_are_read_and_what_does_not_go_with_it_is_told() {
    let mut view = view(vec![vec![]]);
    let port = |port, reading: &str, read_for: &str| PortView {
        port,
        reading: reading.to_owned(),
        read_for: read_for.to_owned(),
    };
    view.destinations[0].ports = vec![
        port(80, "http", "AuthorizationPolicy shop/web"),
        port(81, "sniffed", "AuthorizationPolicy shop/web"),
        port(82, "tcp", ""),
    ];
    view.destinations[0].layer7_findings =
        vec!["error unknown-provider: AuthorizationPolicy shop/web: x".to_owned()];
    let text = view.table(ago(0));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    for row in [
        &["shop/cart", "80", "HTTP", "for AuthorizationPolicy shop/web"][..],
        &[
            "shop/cart",
            "81",
            "no service says it: told by its first bytes",
            "for AuthorizationPolicy shop/web",
        ],
        &["shop/cart", "82", "no HTTP", "no"],
        &["error unknown-provider: AuthorizationPolicy shop/web: x"],
    ] {
        assert!(rows.iter().any(|own| own == row), "{row:?} in {text}");
    }
}

#[test]
fn a_workload_with_more_sources_than_are_kept_is_not_ready() {
    let mut answers = view(vec![vec![]]);
    answers.destinations[0].incomplete = true;
    answers.destinations[0].conclude();
    assert!(!answers.destinations[0].ready);
}
