use std::time::{Duration, SystemTime};

use ambit_proto::admin::v1::{
    CaptureCounters, Certificate, CertificateState, Connection, Denial, Direction, Issuer, Party, Pod,
    PodState, Problem, Security,
};
use prost_types::Timestamp;

use super::*;
use crate::{cli::remote::narrow, instance::RunDir};

const NOW: i64 = 1_900_000_000;

fn at(offset: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: NOW + offset, nanos: 0 })
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs())
}

fn status() -> StatusResponse {
    StatusResponse {
        node: "n1".to_owned(),
        instance: String::new(),
        version: "0.1.0".to_owned(),
        started: at(-11_000),
        ready: false,
        pending: vec!["certificates".to_owned(), "manifests".to_owned()],
        pods: vec![Pod {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "u1".to_owned(),
            identity: "spiffe://td1/ns/shop/sa/web".to_owned(),
            ips: vec!["10.0.1.5".to_owned(), "fd00::5".to_owned()],
            netns_cookie: 4242,
            state: PodState::Enrolled.into(),
            found_by: "cni".to_owned(),
            counters: Some(CaptureCounters { captured: 12, passed: 3, bypassed: 4, refused: 0, probes: 7 }),
            ..Pod::default()
        }],
        certificates: vec![Certificate {
            identity: "spiffe://td1/ns/shop/sa/web".to_owned(),
            serial: "1f2e".to_owned(),
            not_before: at(-100),
            not_after: at(43_140),
            next_renewal: at(-7),
            state: CertificateState::Valid.into(),
            ..Certificate::default()
        }],
        connections: vec![Connection {
            direction: Direction::Outbound.into(),
            source_addr: "10.0.1.5:40000".to_owned(),
            destination_addr: "10.0.2.7:8080".to_owned(),
            source_workload: "shop/web".to_owned(),
            peer_identity: "spiffe://td1/ns/stock/sa/cart".to_owned(),
            security: Security::MutualTls.into(),
            group: "X25519MLKEM768".to_owned(),
            client_to_server_bytes: 1536,
            server_to_client_bytes: 7,
            opened: at(-65),
            ..Connection::default()
        }],
        connections_total: 250,
        problems: vec![Problem {
            file: "pa.yaml".to_owned(),
            object: "PeerAuthentication shop/all".to_owned(),
            field: "spec.mtls.mode".to_owned(),
            message: "\"ST\u{1b}[31mRICT\" is no mode".to_owned(),
        }],
        policies: 2,
        roots: vec![],
        issuers: vec![],
        clusters: vec![],
        kernel_tls: String::new(),
        denials: vec![Denial {
            direction: Direction::Inbound.into(),
            source: Some(Party {
                namespace: "shop".to_owned(),
                workload: "web".to_owned(),
                identity: "spiffe://td1/ns/shop/sa/web".to_owned(),
                ..Party::default()
            }),
            destination: Some(Party { ip: "10.0.2.7".to_owned(), ..Party::default() }),
            port: 8080,
            code: 2,
            reason: "policy_denied".to_owned(),
            policy: "stock/only-a".to_owned(),
            rule: "rules[0]".to_owned(),
            field: "from[0].source.principals".to_owned(),
            count: 3,
            last_seen: at(-7),
            ..Denial::default()
        }],
    }
}

#[test]
fn issuers_of_tokens_are_shown_where_there_are_any() {
    let issuer = |issuer: &str, keys: u32, fetched, error: &str| Issuer {
        issuer: issuer.to_owned(),
        url: if keys == 0 { String::new() } else { "https://a.example/keys".to_owned() },
        keys,
        fetched,
        error: error.to_owned(),
    };
    let issuers = vec![
        issuer("https://a.example", 2, at(-70), ""),
        issuer("https://b.example", 0, None, "cannot resolve b.example"),
    ];
    let text =
        table::render(&StatusView::new(StatusResponse { issuers, ..status() }, &[Section::Issuers]), now());
    let shown: Vec<&str> = text.lines().skip(4).collect();
    assert_eq!(
        shown,
        [
            "ISSUERS",
            "  ISSUER             KEYS  AGE     FETCHED FROM              LAST ERROR",
            "  https://a.example  2     1m 10s  https://a.example/keys    -",
            "  https://b.example  0     -       its OpenID configuration  cannot resolve b.example",
        ]
    );
    assert!(!table::render(&StatusView::new(status(), &[Section::Issuers]), now()).contains("ISSUERS"));
}

#[test]
fn the_table_says_it_all_at_a_glance() {
    let text = table::render(&StatusView::new(status(), &[]), now());
    assert_eq!(
        text,
        "\
Node      n1
Agent     ambit 0.1.0, not ready, pending: certificates, manifests, up 3h 3m
Policies  2 in force

PODS
  NAMESPACE  NAME  STATE     IDENTITY                     IP                CAPTURED  PASSED  PROBES  REFUSED
  shop       web   enrolled  spiffe://td1/ns/shop/sa/web  10.0.1.5,fd00::5  12        3       7       0

CERTIFICATES
  IDENTITY                     STATE  EXPIRES     RENEWAL  SERIAL  LAST ERROR
  spiffe://td1/ns/shop/sa/web  valid  in 11h 59m  7s ago   1f2e    -

CONNECTIONS, the oldest 1 of 250 (all: ambit status connections)
  DIRECTION  CLIENT                     SERVER         SERVICE  MTLS  GROUP           PEER IDENTITY                  TO SERVER  TO CLIENT  AGE
  outbound   shop/web (10.0.1.5:40000)  10.0.2.7:8080  -        yes   X25519MLKEM768  spiffe://td1/ns/stock/sa/cart  1.5 KiB    7 B        1m 5s

DENIALS
  LAST SEEN  COUNT  DIRECTION  SOURCE                         DESTINATION    REASON             POLICY        RULE      WHY                                      SAID BY
  7s ago     3      inbound    shop/web (td1/ns/shop/sa/web)  10.0.2.7:8080  policy_denied (2)  stock/only-a  rules[0]  from[0].source.principals does not hold  this agent

PROBLEMS
  pa.yaml: PeerAuthentication shop/all: spec.mtls.mode: \"ST\\u{1b}[31mRICT\" is no mode
"
    );
}

#[test]
fn who_has_the_records_is_told_where_it_was_asked_for() {
    let heading = |kernel_tls: &str| {
        let answer = StatusResponse { kernel_tls: kernel_tls.to_owned(), ..status() };
        let text = table::render(&StatusView::new(answer, &[Section::Pods]), now());
        text.lines().skip(2).take_while(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(heading("on"), ["Policies  2 in force", "Kernel TLS  on"]);
    assert_eq!(heading("off"), ["Policies  2 in force"]);
    // Agents before 0.2 do not say.
    assert_eq!(heading(""), ["Policies  2 in force"]);
}

#[test]
fn sections_narrow_it_down() {
    let empty = StatusResponse { ready: true, connections: Vec::new(), connections_total: 0, ..status() };
    let text = table::render(&StatusView::new(empty, &[Section::Connections]), now());
    assert!(text.contains("ambit 0.1.0, ready, up"), "{text}");
    assert!(text.ends_with("\nCONNECTIONS\n  none\n") && !text.contains("PODS"), "{text}");
}

#[test]
fn one_namespace_is_picked_out() {
    let mut all = status();
    all.pods.push(Pod { namespace: "stock".to_owned(), ..Pod::default() });
    all.problems.push(Problem { object: "Namespace stock".to_owned(), ..Problem::default() });
    all.problems.push(Problem { message: "the API cannot be read".to_owned(), ..Problem::default() });
    let mut shop = all.clone();
    narrow(&mut shop, "shop");
    assert_eq!(
        (shop.pods.len(), shop.certificates.len(), shop.connections_total, shop.problems.len()),
        (1, 1, 1, 2)
    );
    narrow(&mut all, "stock");
    assert_eq!(
        (all.pods.len(), all.certificates.len(), all.connections_total, all.problems.len()),
        (1, 0, 0, 2)
    );
}

#[test]
fn machines_get_stable_keys_and_times() {
    let view = StatusView::new(status(), &[]);
    let json: serde_json::Value = serde_json::from_str(&render(&view, Format::Json).unwrap()).unwrap();
    assert_eq!(json["started"], "2030-03-17T14:43:20Z");
    assert_eq!(json["pods"][0]["netnsCookie"], 4242);
    assert_eq!(json["pods"][0]["counters"]["bypassed"], 4);
    assert_eq!(json["pods"][0]["foundBy"], "cni");
    assert_eq!(json["certificates"][0]["state"], "valid");
    assert_eq!(json["connections"][0]["security"], "mutual_tls");
    assert_eq!(json["connections"][0]["clientToServerBytes"], 1536);
    assert_eq!(json["connectionsTotal"], 250);
    assert_eq!((&json["denials"][0]["code"], &json["denials"][0]["count"]), (&2.into(), &3.into()));
    let yaml: serde_json::Value = serde_yaml_ng::from_str(&render(&view, Format::Yaml).unwrap()).unwrap();
    assert_eq!(json, yaml);
    let pods_only = StatusView::new(status(), &[Section::Pods]);
    let json: serde_json::Value = serde_json::from_str(&render(&pods_only, Format::Json).unwrap()).unwrap();
    assert!(json.get("connections").is_none() && json.get("pods").is_some());
}

#[test]
fn times_beyond_any_clock_are_left_out() {
    let odd = |seconds, nanos| StatusResponse { started: Some(Timestamp { seconds, nanos }), ..status() };
    for bad in [odd(-1, 0), odd(NOW, -1), odd(i64::MAX, 0)] {
        let view = StatusView::new(bad, &[]);
        assert_eq!(view.started, None);
        assert!(render(&view, Format::Json).unwrap().contains("\"started\": null"));
    }
    let ahead = StatusView::new(odd(NOW + 60, 0), &[]);
    assert!(table::render(&ahead, now()).contains("up 0s"), "the clocks of agent and user may differ");
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: StatusArgs,
}

#[test]
fn an_agent_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(RunDir::socket_path(dir.path())).unwrap();
    let run_dir = dir.path().to_str().unwrap();
    let Line { args } = clap::Parser::try_parse_from(["status", "--run-dir", run_dir]).unwrap();
    let started = Instant::now();
    let error = run(&args).unwrap_err().to_string();
    assert!(error.contains("did not answer within 5s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[test]
fn readiness_is_that_of_the_agent_meant() {
    let ready = StatusResponse { ready: true, instance: "b".to_owned(), ..status() };
    assert_eq!(readiness(&ready, None).unwrap(), "ready\n");
    assert_eq!(readiness(&ready, Some("b")).unwrap(), "ready\n");
    assert!(readiness(&ready, Some("a")).unwrap_err().to_string().contains("has not taken over"));
    let replaced = StatusResponse {
        instance: "a".to_owned(),
        pending: vec!["pods".to_owned(), "replaced".to_owned()],
        ..status()
    };
    assert!(readiness(&replaced, Some("a")).unwrap().starts_with("replaced"), "a probe is not to complain");
    assert!(readiness(&replaced, None).is_err());
    let pending = readiness(&status(), None).unwrap_err().to_string();
    assert_eq!(pending, "not ready, pending: certificates, manifests");
}
