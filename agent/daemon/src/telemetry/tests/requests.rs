use http::{StatusCode, request::Parts};

use super::*;

fn head(method: &str, path: &str, fields: &[(&'static str, &str)]) -> Parts {
    let mut request = http::Request::builder().method(method).uri(path).header("host", "cart:80");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn answered(status: u16) -> RequestEnd {
    RequestEnd {
        status: Some(StatusCode::from_u16(status).unwrap()),
        request_bytes: 10,
        response_bytes: 2_000,
        ..RequestEnd::default()
    }
}

#[test]
fn a_request_is_counted_with_the_labels_of_istio() {
    let telemetry = Telemetry::new();
    let connection = telemetry.open(web_to_cart(Direction::Inbound));
    let request = connection.request(&mut head("GET", "/items/7?token=secret", &[]));
    request.admitted();
    request.finish(&answered(200));
    let grpc = &[("content-type", "application/grpc+proto")];
    let call = connection.request(&mut head("POST", "/shop.Cart/Add", grpc));
    call.finish(&RequestEnd {
        grpc_status: Some(5),
        request_messages: 3,
        response_messages: 1,
        ..answered(200)
    });
    connection.request(&mut head("GET", "/", &[])).refused(&denial(), StatusCode::FORBIDDEN);
    drop(connection.request(&mut head("GET", "/slow", &[])));
    connection.malformed(&Refusal::new(Reason::MalformedRequest, "two lengths"));

    let text = telemetry.encode();
    let counted = |labels: &[&str]| sample(&text, "istio_requests_total", labels);
    assert_eq!(
        counted(&[
            "reporter=\"destination\"",
            "source_principal=\"spiffe://td1/ns/shop/sa/web\"",
            "destination_service_name=\"cart-api\"",
            "request_protocol=\"http\"",
            "response_flags=\"-\"",
            "connection_security_policy=\"mutual_tls\"",
            "response_code=\"200\"",
            "grpc_response_status=\"\"",
        ]),
        Some(1.0)
    );
    let grpc = ["request_protocol=\"grpc\"", "response_code=\"200\"", "grpc_response_status=\"5\""];
    assert_eq!(counted(&grpc), Some(1.0));
    assert_eq!(counted(&["response_code=\"403\"", "response_flags=\"-\""]), Some(1.0));
    assert_eq!(counted(&["response_code=\"0\"", "response_flags=\"DC\""]), Some(1.0));
    assert_eq!(counted(&["response_code=\"400\"", "response_flags=\"DPE\""]), Some(1.0));
    let messages = |name| sample(&text, name, &[]);
    assert_eq!(messages("istio_request_messages_total"), Some(3.0));
    assert_eq!(messages("istio_response_messages_total"), Some(1.0));
    let ok = ["request_protocol=\"http\"", "response_code=\"200\""];
    assert_eq!(sample(&text, "istio_request_bytes_sum", &ok), Some(10.0));
    assert_eq!(sample(&text, "istio_response_bytes_count", &ok), Some(1.0));
    let bucket = |bound| sample(&text, "istio_response_bytes_bucket", &[&ok[..], &[bound]].concat()).unwrap();
    assert_eq!([bucket("le=\"1000.0\""), bucket("le=\"2500.0\""), bucket("le=\"+Inf\"")], [0.0, 1.0, 1.0]);
    assert_eq!(sample(&text, "istio_request_duration_milliseconds_count", &ok), Some(1.0));
    let denied = ["reason=\"policy_denied\"", "policy=\"stock/only-web\""];
    assert_eq!(sample(&text, "ambit_denials_total", &denied), Some(1.0));
    assert_eq!(sample(&text, "istio_tcp_connections_failed_total", &[]), None, "the connection lives on");

    let denials = telemetry.denials(10);
    let (_, by_policy) = denials.iter().find(|(key, _)| key.reason == Reason::PolicyDenied).unwrap();
    assert_eq!(by_policy.detail.request, Some(("GET".into(), "/".into())));
}

#[test]
fn a_request_has_a_line_without_its_query() {
    let lines = logged(LogFormat::Text, |telemetry| {
        let connection = telemetry.open(web_to_cart(Direction::Inbound));
        let fields = [
            ("x-request-id", "r-1"),
            ("traceparent", "00-0000000000000000000000000000000a-000000000000000b-01"),
        ];
        connection.request(&mut head("GET", "/items/7?token=secret", &fields)).finish(&answered(200));
        connection
            .request(&mut head("POST", "/items", &[("x-request-id", "r\t2")]))
            .refused(&denial(), StatusCode::FORBIDDEN);
        connection.finish(&Ending::Closed);
    });
    let [complete, refused, _] = &lines[..] else { panic!("{lines:?}") };
    assert!(
        complete.starts_with("info\taccess::request\trequest complete\tsrc.addr=10.0.1.5:40000 "),
        "{complete}"
    );
    for part in [
        " src.identity=\"spiffe://td1/ns/shop/sa/web\"",
        " method=\"GET\" path=\"/items/7\" authority=\"cart:80\" protocol=HTTP/1.1 status=200 request_bytes=10 \
         response_bytes=2000 duration=\"0ms\" flags=\"-\" request_id=\"r-1\" \
         trace_id=\"0000000000000000000000000000000a\"",
        " connection=00000000000000a1-7",
    ] {
        assert!(complete.contains(part), "{part} is not in {complete}");
    }
    assert!(!complete.contains("secret"), "{complete}");
    assert!(
        refused.starts_with("warn\taccess::request\trequest failed\t")
            && refused.contains(
                " status=403 error=\"explicitly denied by: stock/only-web\" reason=\"policy_denied\" \
                                policy=\"stock/only-web\" rule=\"rules[2]\" request_id=\"r\\t2\""
            ),
        "{refused}"
    );
}

#[test]
fn what_was_requested_is_known_only_where_all_connections_were_read() {
    let telemetry = Telemetry::new();
    let connection = telemetry.open(web_to_cart(Direction::Inbound));
    for path in ["/items/1", "/items/2", "/health"] {
        connection.request(&mut head("GET", path, &[])).admitted();
    }
    connection.request(&mut head("PUT", "/items/1", &[])).refused(&denial(), StatusCode::FORBIDDEN);
    let operations = |telemetry: &Telemetry| {
        let flows = telemetry.observations().flows;
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        let told = |operations: &Operations| {
            operations
                .iter()
                .map(|(method, paths)| format!("{method} {}", paths.join(" ")))
                .collect::<Vec<_>>()
        };
        flow.operations.as_ref().map(told)
    };
    assert_eq!(operations(&telemetry), Some(vec!["GET /health /items/{*}".to_owned()]));
    let _not_read = telemetry.open(web_to_cart(Direction::Inbound));
    assert_eq!(operations(&telemetry), None);
}

#[tokio::test]
async fn headers_are_left_alone_unless_traces_are_sent() {
    let trace = ("traceparent", "00-0000000000000000000000000000000a-000000000000000b-01");
    let telemetry = Telemetry::new();
    let connection = telemetry.open(web_to_cart(Direction::Inbound));
    let (mut bare, mut traced) = (head("GET", "/", &[]), head("GET", "/", &[trace]));
    let before = (bare.headers.clone(), traced.headers.clone());
    drop([&mut bare, &mut traced].map(|head| connection.request(head)));
    assert_eq!((&bare.headers, &traced.headers), (&before.0, &before.1));

    let settings = |sampled| TraceSettings {
        endpoint: "http://127.0.0.1:1".parse().unwrap(),
        sampled,
        node: "n1".to_owned(),
    };
    telemetry.export_traces(settings(0));
    drop([&mut bare, &mut traced].map(|head| connection.request(head)));
    assert_eq!(&bare.headers, &before.0, "by chance it is not sampled");
    let passed = traced.headers["traceparent"].to_str().unwrap();
    assert!(
        passed.starts_with("00-0000000000000000000000000000000a-") && passed.ends_with("-01"),
        "{passed}: a trace that comes sampled goes on"
    );
    assert_ne!(passed, trace.1, "whoever comes next is our child");
    // What sends them has not run: the queue fills, and the rest is lost and counted.
    for _ in 0..3_000 {
        drop(connection.request(&mut head("GET", "/", &[trace])));
    }
    let text = telemetry.encode();
    let dropped = sample(&text, "ambit_trace_spans_total", &["result=\"dropped\""]).unwrap();
    assert!((900.0..1_000.0).contains(&dropped), "{dropped}");
}
