use std::time::Duration;

use super::{
    super::{Ending, Security, Telemetry, tests::web_to_cart},
    *,
};

fn denial(rule: &str) -> Refusal {
    Refusal {
        policy: Some("stock/only-a".into()),
        rule: Some(rule.into()),
        field: Some("from[0].source.principals".into()),
        ..Refusal::new(Reason::PolicyDenied, "no")
    }
}

fn plaintext_from(ip: &str) -> Meta {
    Meta {
        source: Party::default(),
        source_addr: format!("{ip}:40000").parse().unwrap(),
        security: Security::Plaintext,
        ..web_to_cart(Direction::Inbound)
    }
}

#[test]
fn denials_are_counted_by_what_tells_them_apart() {
    let telemetry = Telemetry::new();
    for _ in 0..3 {
        telemetry.refuse(&web_to_cart(Direction::Inbound), &denial("rules[0]"));
    }
    let cut = Ending::Refused { refusal: denial("rules[1]"), by_peer: true };
    telemetry.open(web_to_cart(Direction::Outbound)).finish(&cut);
    telemetry.refuse(&plaintext_from("10.9.9.9"), &Refusal::new(Reason::MtlsRequired, "no"));
    let unreachable = Refusal::new(Reason::ConnectionRefused, "nobody there");
    telemetry.refuse(&web_to_cart(Direction::Inbound), &unreachable);

    let denials = telemetry.observations().denials;
    let mut seen: Vec<_> = denials
        .iter()
        .map(|(key, seen)| (key.reason, key.by_peer, seen.detail.refusal.rule.as_deref(), seen.count))
        .collect();
    seen.sort_by_key(|row| (row.0.code(), row.1));
    assert_eq!(
        seen,
        [
            (Reason::MtlsRequired, false, None, 1),
            (Reason::PolicyDenied, false, Some("rules[0]"), 3),
            (Reason::PolicyDenied, true, Some("rules[1]"), 1),
        ],
        "a closed port is nobody's decision"
    );
    let (key, stranger) = denials.iter().find(|(key, _)| key.reason == Reason::MtlsRequired).unwrap();
    assert_eq!((&key.source.workload, stranger.detail.source.ip), (&None, "10.9.9.9".parse().unwrap()));
    assert_eq!(telemetry.denials(2).len(), 2);
    let text = telemetry.encode();
    for line in [
        "ambit_denials_total{reporter=\"destination\",reason=\"policy_denied\",policy=\"stock/only-a\"} 3",
        "ambit_denials_total{reporter=\"source\",reason=\"policy_denied\",policy=\"stock/only-a\"} 1",
        "ambit_denials_total{reporter=\"destination\",reason=\"mtls_required\",policy=\"none\"} 1",
    ] {
        assert!(text.lines().any(|sample| sample == line), "no {line} in {text}");
    }
}

#[test]
fn flows_are_of_what_comes_in_and_open_ones_are_being_seen() {
    let telemetry = Telemetry::new();
    telemetry.open(web_to_cart(Direction::Inbound)).finish(&Ending::Closed);
    // What goes out is another agent's to see.
    telemetry.open(web_to_cart(Direction::Outbound)).finish(&Ending::Closed);
    let open = telemetry.open(plaintext_from("10.9.9.9"));
    let later = SystemTime::now() + Duration::from_secs(3600);
    let snapshot = || telemetry.0.observed.snapshot(&telemetry.live(), later).flows;
    let mut flows = snapshot();
    flows.sort_by_key(|flow| matches!(flow.key.source, FlowSource::Plaintext(_)));
    let [mutual, plaintext] = &flows[..] else { panic!("{flows:#?}") };
    assert_eq!(
        (&*mutual.key.destination.0, &*mutual.key.destination.1, mutual.key.port),
        ("stock", "cart", 8080)
    );
    let web = "spiffe://td1/ns/shop/sa/web".parse().unwrap();
    assert_eq!((&mutual.key.source, mutual.open), (&FlowSource::MutualTls(web), 0));
    assert!(mutual.sighting.last < later);
    assert_eq!(plaintext.key.source, FlowSource::Plaintext("10.9.9.9".parse().unwrap()));
    assert_eq!((plaintext.open, plaintext.sighting.last), (1, later));
    open.finish(&Ending::Closed);
    assert!(snapshot().iter().all(|flow| flow.open == 0 && flow.sighting.last < later));
    let labels = "{source_workload=\"unknown\",source_workload_namespace=\"unknown\",\
                  destination_workload=\"cart\",destination_workload_namespace=\"stock\"} 1";
    assert!(telemetry.encode().contains(&format!("ambit_plaintext_connections_total{labels}")));
}

#[test]
fn a_pod_that_calls_itself_is_met_on_its_way_out() {
    let telemetry = Telemetry::new();
    let meta = web_to_cart(Direction::Outbound);
    let itself = Meta { source: meta.destination.clone(), security: Security::Plaintext, ..meta };
    telemetry.open(itself).finish(&Ending::Closed);
    let flows = telemetry.observations().flows;
    let cart: SpiffeId = "spiffe://td1/ns/stock/sa/cart".parse().unwrap();
    assert_eq!(flows.len(), 1);
    assert_eq!(flows[0].key.source, FlowSource::MutualTls(cart));
}

#[test]
fn rehearsals_are_summed_by_policy_and_kept_by_connection() {
    let telemetry = Telemetry::new();
    let (meta, policy) = (web_to_cart(Direction::Inbound), ObjectName::new("stock", "dry"));
    telemetry.rehearsed(&meta, &policy, "ALLOW", Rehearsed::Unchanged);
    telemetry.rehearsed(&meta, &policy, "ALLOW", Rehearsed::WouldRefuse);
    telemetry.would_be_refused(&meta, &denial("rules[3]"));
    telemetry.rehearsed(&meta, &policy, "ALLOW", Rehearsed::WouldAdmit(2));
    let Observations { policies, rehearsals, denials, .. } = telemetry.observations();
    assert!(denials.is_empty());
    let [(name, "ALLOW", seen)] = &policies[..] else { panic!("{policies:?}") };
    assert_eq!((name, seen.count), (&policy, 3));
    assert_eq!(seen.detail, Tally { would_refuse: 1, would_admit: 1, matched: 0 });
    let mut outcomes: Vec<_> =
        rehearsals.iter().map(|(key, _)| (&*key.policy, key.rule.as_deref().unwrap(), key.outcome)).collect();
    outcomes.sort_by_key(|row| row.1);
    assert_eq!(
        outcomes,
        [("stock/dry", "rules[2]", Outcome::WouldAdmit), ("stock/only-a", "rules[3]", Outcome::WouldRefuse)]
    );
    let text = telemetry.encode();
    for result in ["unchanged", "would_refuse", "would_admit"] {
        let labels = format!("{{policy=\"stock/dry\",action=\"ALLOW\",result=\"{result}\"}} 1");
        assert!(text.contains(&format!("ambit_policy_rehearsals_total{labels}")), "{text}");
    }
}

/// Whatever comes, there is no more of it than the tables hold, and the pod that is flooded pays for that.
#[test]
fn memory_is_constant_under_a_flood_of_strangers() {
    let telemetry = Telemetry::new();
    let quiet = web_to_cart(Direction::Outbound);
    telemetry.refuse(&quiet, &denial("rules[0]"));
    let policy = ObjectName::new("stock", "dry");
    for n in 0..20_000_u32 {
        let meta = plaintext_from(&std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).to_string());
        telemetry.refuse(&meta, &Refusal::new(Reason::MtlsRequired, "no"));
        telemetry.rehearsed(&meta, &policy, "AUDIT", Rehearsed::Audited(0));
        telemetry.open(meta).finish(&Ending::Closed);
    }
    let Observations { denials, flows, rehearsals, .. } = telemetry.observations();
    assert_eq!((denials.len(), flows.len(), rehearsals.len()), (DENIALS, FLOWS, REHEARSALS));
    assert!(denials.iter().any(|(key, _)| key.direction == Direction::Outbound), "another pod's is gone");
    assert!(flows.iter().all(|flow| flow.incomplete), "what is missing is told");
    assert!(telemetry.encode().len() < 64 * 1024);
}

/// What a connection costs that is opened and closed, with what is remembered of it: a bound far above what it takes.
#[test]
fn remembering_a_connection_costs_microseconds() {
    let observed = Observed::new(SystemTime::now());
    let meta = web_to_cart(Direction::Inbound);
    let (rounds, now) = (20_000_u32, SystemTime::now());
    let started = std::time::Instant::now();
    for _ in 0..rounds {
        observed.opened(&meta, now);
    }
    let each = started.elapsed() / rounds;
    eprintln!("{each:?} for each connection");
    assert!(each < Duration::from_micros(50), "{each:?}");
}
