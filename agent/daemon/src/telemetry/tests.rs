mod requests;

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ambit_core::model::Labels;
use tracing_subscriber::layer::SubscriberExt;

use super::{
    traffic::{MAX_SERIES, TrafficLabels},
    *,
};

fn workload(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<Workload> {
    Arc::new(Workload {
        name: ObjectName::new(namespace, name),
        uid: name.into(),
        identity: identity(namespace, name),
        node: "n1".into(),
        ips: vec![],
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<Labels>(),
        named_ports: BTreeMap::new(),
        probe_ports: vec![],
        host_network: false,
        enrolled: true,
        netns: None,
        http_telemetry: false,
    })
}

fn identity(namespace: &str, account: &str) -> SpiffeId {
    format!("spiffe://td1/ns/{namespace}/sa/{account}").parse().unwrap()
}

pub(super) fn web_to_cart(direction: Direction) -> Meta {
    Meta {
        direction,
        source: Party {
            workload: Some(workload(
                "shop",
                "web-5d4f-x7k2p",
                &[("app", "web"), ("version", "v2"), ("pod-template-hash", "5d4f")],
            )),
            identity: Some(identity("shop", "web")),
        },
        destination: Party {
            workload: Some(workload("stock", "cart", &[])),
            identity: Some(identity("stock", "cart")),
        },
        source_addr: "10.0.1.5:40000".parse().unwrap(),
        destination_addr: "10.0.2.7:8080".parse().unwrap(),
        original_dst: Some("10.96.0.9:80".parse().unwrap()),
        service: Some(ServiceName {
            name: ObjectName::new("stock", "cart-api"),
            host: "cart-api.stock.svc.cluster.local".into(),
        }),
        security: Security::MutualTls { group: "X25519MLKEM768", reused: false },
        id: Some(ConnectionId { epoch: 0xa1, number: 7 }),
    }
}

fn from_nowhere(direction: Direction) -> Meta {
    Meta {
        source: Party::default(),
        service: None,
        original_dst: None,
        security: Security::Plaintext,
        id: None,
        ..web_to_cart(direction)
    }
}

fn denial() -> Refusal {
    Refusal {
        reason: Reason::PolicyDenied,
        policy: Some("stock/only-web".into()),
        rule: Some("rules[2]".into()),
        field: None,
        text: "explicitly denied by: stock/only-web".into(),
    }
}

/// The value of the one sample of `name` that has all of `labels`.
fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} with {labels:?} is not one sample");
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

#[test]
fn a_series_carries_every_label_of_istio() {
    let telemetry = Telemetry::new();
    telemetry.open(web_to_cart(Direction::Outbound)).finish(&Ending::Closed);
    let text = telemetry.encode();
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    assert_eq!(
        line,
        "istio_tcp_connections_opened_total{reporter=\"source\",source_workload=\"web\",\
         source_workload_namespace=\"shop\",source_principal=\"spiffe://td1/ns/shop/sa/web\",\
         source_canonical_service=\"web\",source_canonical_revision=\"v2\",source_app=\"web\",\
         source_version=\"v2\",source_cluster=\"Kubernetes\",\
         destination_service=\"cart-api.stock.svc.cluster.local\",destination_service_namespace=\"stock\",\
         destination_service_name=\"cart-api\",destination_workload=\"cart\",\
         destination_workload_namespace=\"stock\",destination_principal=\"spiffe://td1/ns/stock/sa/cart\",\
         destination_canonical_service=\"cart\",destination_canonical_revision=\"latest\",\
         destination_app=\"cart\",destination_version=\"latest\",destination_cluster=\"Kubernetes\",\
         request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",\
         source_region=\"unknown\",source_zone=\"unknown\",destination_region=\"unknown\",\
         destination_zone=\"unknown\"} 1"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_not_known_is_called_unknown() {
    let telemetry = Telemetry::new();
    let _open = telemetry.open(from_nowhere(Direction::Inbound));
    let labels = [
        "reporter=\"destination\"",
        "source_workload=\"unknown\"",
        "source_principal=\"unknown\"",
        "source_cluster=\"unknown\"",
        "destination_service=\"unknown\"",
        "destination_service_name=\"unknown\"",
        "destination_workload=\"cart\"",
        "connection_security_policy=\"unknown\"",
    ];
    assert_eq!(sample(&telemetry.encode(), "istio_tcp_connections_opened_total", &labels), Some(1.0));
}

#[test]
fn bytes_show_while_the_connection_lives() {
    let telemetry = Telemetry::new();
    let first = telemetry.open(web_to_cart(Direction::Outbound));
    let second = telemetry.open(web_to_cart(Direction::Outbound));
    first.client_to_server(100);
    second.client_to_server(11);
    first.server_to_client(7);

    let text = telemetry.encode();
    assert_eq!(sample(&text, "istio_tcp_received_bytes_total", &[]), Some(111.0));
    assert_eq!(sample(&text, "istio_tcp_sent_bytes_total", &[]), Some(7.0));
    assert_eq!(sample(&text, "istio_tcp_connections_closed_total", &[]), Some(0.0));
    assert_eq!(sample(&text, "istio_tcp_sockets_open", &["source"]), Some(2.0));
    let live = telemetry.live();
    assert_eq!(
        live.iter().map(|live| (live.client_to_server, live.server_to_client)).collect::<Vec<_>>(),
        [(100, 7), (11, 0)]
    );

    first.finish(&Ending::Closed);
    drop(second);
    let text = telemetry.encode();
    assert_eq!(sample(&text, "istio_tcp_connections_closed_total", &[]), Some(2.0));
    assert_eq!(sample(&text, "istio_tcp_connections_failed_total", &[]), Some(1.0));
    assert_eq!(sample(&text, "istio_tcp_sockets_open", &["source"]), Some(0.0));
    assert!(telemetry.live().is_empty());
}

#[test]
fn failures_carry_istio_flags_and_our_reasons() {
    let telemetry = Telemetry::new();
    telemetry.refuse(&from_nowhere(Direction::Inbound), &denial());
    for (reason, flag) in [
        (Reason::CertificateExpired, "TLS_FAILURE"),
        (Reason::IdentityUnavailable, "IDENTITY_ERROR"),
        (Reason::ConnectionRefused, "CONNECT"),
        (Reason::Draining, "\"-\""),
    ] {
        telemetry
            .open(web_to_cart(Direction::Outbound))
            .finish(&Ending::Failed(Refusal::new(reason, "it broke")));
        let text = telemetry.encode();
        assert_eq!(sample(&text, "istio_tcp_connections_failed_total", &["\"source\"", flag]), Some(1.0));
        let labels = [&format!("reason=\"{reason}\"") as &str, "reporter=\"source\""];
        assert_eq!(sample(&text, "ambit_connection_failures_total", &labels), Some(1.0));
    }
    telemetry
        .open(web_to_cart(Direction::Inbound))
        .finish(&Ending::Refused { refusal: denial(), by_peer: false });
    let text = telemetry.encode();
    let denied = ["reporter=\"destination\"", "reason=\"policy_denied\""];
    assert_eq!(sample(&text, "ambit_refusals_total", &denied), Some(2.0));
    let plain = ["DENY", "connection_security_policy=\"unknown\""];
    assert_eq!(sample(&text, "istio_tcp_connections_failed_total", &plain), Some(1.0));
    let cut = ["DENY", "connection_security_policy=\"mutual_tls\""];
    assert_eq!(sample(&text, "istio_tcp_connections_failed_total", &cut), Some(1.0));
    let closed = ["reporter=\"destination\"", "connection_security_policy=\"unknown\""];
    assert_eq!(sample(&text, "istio_tcp_connections_opened_total", &closed), Some(0.0));
}

#[test]
fn the_agents_own_metrics_follow_its_reports() {
    let telemetry = Telemetry::new();
    telemetry.tls_failure(Direction::Inbound, Reason::CertificateMissing);
    telemetry.handshake(Direction::Outbound, true);
    telemetry.tunnel_reused();
    telemetry.enrolled_pods(3);
    let tunnel = telemetry.tunnel();
    let web = identity("shop", "web");
    telemetry.certificate(&web, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)));

    let text = telemetry.encode();
    let missing = ["destination", "certificate_missing"];
    assert_eq!(sample(&text, "ambit_tls_failures_total", &missing), Some(1.0));
    assert_eq!(sample(&text, "ambit_handshakes_total", &["source", "resumed=\"true\""]), Some(1.0));
    assert_eq!(sample(&text, "ambit_tunnel_reuse_total", &[]), Some(1.0));
    assert_eq!(sample(&text, "ambit_enrolled_pods", &[]), Some(3.0));
    assert_eq!(sample(&text, "ambit_tunnels_open", &[]), Some(1.0));
    let expiry = "ambit_certificate_expiry_timestamp_seconds";
    let of_web = ["identity=\"spiffe://td1/ns/shop/sa/web\""];
    assert_eq!(sample(&text, expiry, &of_web), Some(1_900_000_000.0));
    let version = format!("tag=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert_eq!(sample(&text, "istio_build", &["component=\"ambit\"", &version]), Some(1.0));
    for name in ["resident_memory_bytes", "open_fds", "start_time_seconds", "cpu_seconds_total"] {
        assert!(sample(&text, &format!("process_{name}"), &[]).is_some(), "{name}");
    }

    drop(tunnel);
    telemetry.certificate(&web, None);
    let text = telemetry.encode();
    assert_eq!(sample(&text, "ambit_tunnels_open", &[]), Some(0.0));
    assert_eq!(sample(&text, expiry, &of_web), None);
}

#[test]
fn label_sets_are_bounded_and_idle_ones_make_room() {
    let named = |n: usize| {
        let mut meta = from_nowhere(Direction::Inbound);
        meta.destination.workload = Some(workload("jobs", &format!("job-{n}"), &[]));
        TrafficLabels::of(&meta)
    };
    let traffic = traffic::Traffic::new();
    let start = Instant::now();
    let busy = traffic.series_at(named(0), start);
    for n in 1..MAX_SERIES {
        traffic.series_at(named(n), start);
    }
    let overflow = traffic.series_at(named(MAX_SERIES), start);
    assert!(Arc::ptr_eq(&overflow, &traffic.series_at(named(MAX_SERIES + 1), start)));
    assert!(Arc::ptr_eq(&busy, &traffic.series_at(named(0), start)));

    let later = start + traffic::MIN_IDLE + Duration::from_secs(60);
    let fresh = traffic.series_at(named(MAX_SERIES), later);
    assert!(!Arc::ptr_eq(&overflow, &fresh));
    assert!(Arc::ptr_eq(&busy, &traffic.series_at(named(0), later)), "a series in use was dropped");
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log lines that `report` leads to, without the time.
fn logged(format: LogFormat, report: impl FnOnce(&Telemetry)) -> Vec<String> {
    let out = Captured::default();
    let writer = out.clone();
    let lines = tracing_subscriber::fmt::layer()
        .event_format(logging::Lines(format))
        .fmt_fields(logging::Lines(format))
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let subscriber =
        tracing_subscriber::registry().with(tracing::level_filters::LevelFilter::INFO).with(lines);
    tracing::subscriber::with_default(subscriber, || report(&Telemetry::new()));
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    let strip = |line: &str| match format {
        LogFormat::Text => line.split_once('\t').unwrap().1.to_owned(),
        LogFormat::Json => line.to_owned(),
    };
    text.lines().map(strip).collect()
}

#[test]
fn the_access_log_shows_our_own_pods_view() {
    let report = |direction| {
        move |telemetry: &Telemetry| {
            let connection = telemetry.open(web_to_cart(direction));
            connection.client_to_server(100);
            connection.server_to_client(7);
            connection.finish(&Ending::Closed);
        }
    };
    let lines = logged(LogFormat::Text, report(Direction::Outbound));
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let (head, tail) = line.split_once(" duration=\"").unwrap();
    assert_eq!(
        head,
        "info\taccess\tconnection complete\tsrc.addr=10.0.1.5:40000 src.workload=\"web-5d4f-x7k2p\" \
         src.namespace=\"shop\" src.identity=\"spiffe://td1/ns/shop/sa/web\" src.cluster=\"Kubernetes\" \
         dst.addr=10.0.2.7:8080 dst.service=\"cart-api.stock.svc.cluster.local\" dst.workload=\"cart\" \
         dst.namespace=\"stock\" dst.identity=\"spiffe://td1/ns/stock/sa/cart\" dst.cluster=\"Kubernetes\" \
         direction=\"outbound\" bytes_sent=100 bytes_recv=7"
    );
    assert_eq!(
        tail.split_once("ms\"").unwrap().1,
        " security=\"mutual_tls\" dst.original_addr=10.96.0.9:80 connection=00000000000000a1-7"
    );

    let lines = logged(LogFormat::Text, report(Direction::Inbound));
    assert!(lines[0].contains("direction=\"inbound\" bytes_sent=7 bytes_recv=100 "), "{lines:?}");
}

#[test]
fn a_refusal_is_logged_with_reason_policy_and_rule() {
    let lines = logged(LogFormat::Text, |telemetry| {
        telemetry.refuse(&from_nowhere(Direction::Inbound), &denial());
    });
    assert_eq!(
        lines,
        ["warn\taccess\tconnection failed\tsrc.addr=10.0.1.5:40000 dst.addr=10.0.2.7:8080 \
         dst.workload=\"cart\" dst.namespace=\"stock\" direction=\"inbound\" \
         error=\"explicitly denied by: stock/only-web\" reason=\"policy_denied\" policy=\"stock/only-web\" \
         rule=\"rules[2]\" security=\"plaintext\""]
    );
    let lines = logged(LogFormat::Text, |telemetry| {
        let refused = Ending::Refused { refusal: denial(), by_peer: true };
        telemetry.open(web_to_cart(Direction::Outbound)).finish(&refused);
        telemetry.open(web_to_cart(Direction::Outbound)).finish(&Ending::Reset);
        drop(telemetry.open(web_to_cart(Direction::Outbound)));
    });
    assert!(lines[0].starts_with("error\taccess\tconnection complete\t"), "{lines:?}");
    assert!(lines[0].contains("error=\"refused by the peer: explicitly denied"), "{lines:?}");
    assert!(lines[1].starts_with("info\t") && lines[1].contains(" reason=\"reset\""), "{lines:?}");
    assert!(lines[2].starts_with("error\t") && lines[2].contains("given up by the agent"), "{lines:?}");
}

#[test]
fn a_flood_of_noes_has_a_limit_and_a_count() {
    const FLOOD: usize = 1_000;
    let refused = || Ending::Refused { refusal: denial(), by_peer: true };
    let failed = || Ending::Failed(Refusal::new(Reason::Timeout, "late"));
    let lines = logged(LogFormat::Text, |telemetry| {
        for ending in (0..FLOOD).flat_map(|_| [refused(), failed()]) {
            telemetry.open(web_to_cart(Direction::Outbound)).finish(&ending);
        }
        std::thread::sleep(Duration::from_millis(100));
        telemetry.open(web_to_cart(Direction::Outbound)).finish(&refused());
    });
    let refused: Vec<&String> = lines.iter().filter(|line| line.contains("policy_denied")).collect();
    assert!((200..900).contains(&refused.len()), "{} lines", refused.len());
    let unsaid = refused.iter().filter_map(|line| line.split_once("unsaid=")?.1.trim().parse::<usize>().ok());
    assert_eq!(refused.len() + unsaid.sum::<usize>(), FLOOD + 1, "every one is told or counted");
}

#[test]
fn a_peers_text_cannot_forge_a_line() {
    let forged = "no\n2026-01-01T00:00:00Z\tinfo\taccess\tconnection complete\t\u{1b}[2J\"";
    for format in [LogFormat::Text, LogFormat::Json] {
        let lines = logged(format, |telemetry| {
            let refusal = Refusal { text: forged.into(), ..denial() };
            let refused = Ending::Refused { refusal, by_peer: true };
            telemetry.open(web_to_cart(Direction::Outbound)).finish(&refused);
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains('\u{1b}'));
    }
}

#[test]
fn json_lines_keep_the_order_and_the_numbers() {
    let lines = logged(LogFormat::Json, |telemetry| {
        let span = tracing::info_span!("outbound", pod = "shop/web");
        let _entered = span.enter();
        let connection = telemetry.open(web_to_cart(Direction::Outbound));
        connection.client_to_server(100);
        connection.finish(&Ending::Closed);
    });
    let value: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(value["message"], "connection complete");
    assert_eq!(value["level"], "info");
    assert_eq!(value["target"], "access");
    assert_eq!(value["bytes_sent"], 100);
    assert_eq!(value["src.addr"], "10.0.1.5:40000");
    assert_eq!(value["pod"], "shop/web");
    let at = |key: &str| lines[0].find(&format!("\"{key}\":")).unwrap();
    assert!(
        at("time") < at("src.addr") && at("src.addr") < at("dst.addr") && at("dst.addr") < at("duration")
    );
}
