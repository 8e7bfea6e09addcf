//! What is asked by HTTP, and what comes of the answers.

use std::convert::Infallible;

use ::http::Response;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::*;

/// A provider that gives this answer, and what it is asked.
async fn provider(
    settings: ProviderSettings,
    status: u16,
    fields: &'static [(&'static str, &'static str)],
    body: &'static str,
) -> (Providers, Loopback, mpsc::UnboundedReceiver<(Parts, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialler = Loopback::to(listener.local_addr().unwrap());
    let (seen, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let (head, asked) = request.into_parts();
                    let _ = seen.send((head, asked.collect().await.unwrap().to_bytes()));
                    let mut response = Response::builder().status(status);
                    for (name, value) in fields {
                        response = response.header(*name, *value);
                    }
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap())
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (providers(settings).0, dialler, asked)
}

fn patterns(names: &[&str]) -> Vec<NamePattern> {
    names.iter().map(|name| NamePattern::new(name).unwrap()).collect()
}

fn form(change: impl FnOnce(&mut HttpSettings)) -> ProviderSettings {
    let mut form = HttpSettings::default();
    change(&mut form);
    settings(Form::Http(Box::new(form)))
}

#[tokio::test]
async fn a_request_is_shown_as_far_as_is_configured() {
    let settings = form(|form| {
        form.path_prefix = "/check".into();
        form.shown = patterns(&["authorization", "x-role*", "*-id", "content-length"]);
        form.added = vec![("x-asked-by".parse().unwrap(), "ambit".parse().unwrap())];
    });
    let body = Some(BodySettings { max_bytes: 4, allow_partial: true, as_bytes: false });
    let (providers, dialler, mut asked) = provider(ProviderSettings { body, ..settings }, 200, &[], "").await;
    let fields = [
        ("authorization", "Bearer t"),
        ("x-role-a", "1"),
        ("X-Request-Id", "7"),
        ("x-secret", "s"),
        ("content-length", "5"),
        ("x-asked-by", "mallory"),
    ];
    let request = head("PUT", "/a/b?c=d", &fields);
    for _ in 0..3 {
        admitted(ask_with(&providers, &dialler, Some(&request), Some((b"12345", false))).await);
    }
    assert_eq!(dialler.dials(), 1, "the connection is kept");
    let (told, body) = asked.recv().await.unwrap();
    assert_eq!((told.method.as_str(), told.uri.to_string()), ("PUT", "/check/a/b?c=d".to_owned()));
    assert_eq!(&*body, b"1234");
    let all: Vec<(&str, &str)> =
        told.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    for expected in [
        ("host", "shop.test:8080"),
        ("content-length", "4"),
        ("authorization", "Bearer t"),
        ("x-role-a", "1"),
        ("x-request-id", "7"),
        ("x-asked-by", "ambit"),
        ("x-envoy-auth-partial-body", "true"),
    ] {
        assert!(all.contains(&expected), "{expected:?} in {all:?}");
    }
    assert_eq!(all.len(), 7, "{all:?}");
}

#[tokio::test]
async fn what_a_yes_says_is_passed_on_as_far_as_is_configured() {
    let settings = form(|form| {
        form.to_upstream = patterns(&["x-user", "content-length"]);
        form.to_client_on_allow = patterns(&["set-*"]);
    });
    let fields = &[
        ("x-user", "alice"),
        ("x-user", "bob"),
        ("x-other", "1"),
        ("set-cookie", "a=b"),
        ("x-envoy-auth-headers-to-remove", "authorization, x-debug"),
    ];
    let (providers, dialler, _asked) = provider(settings, 200, fields, "ignored").await;
    let mut request = head("GET", "/", &[("authorization", "t"), ("x-debug", "1"), ("x-user", "mallory")]);
    let changes = admitted(ask(&providers, &dialler, Some(&request)).await);
    changes.apply_to_request(&mut request);
    let all: Vec<(&str, &str)> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(all, [("host", "shop.test:8080"), ("x-user", "alice"), ("x-user", "bob")]);
    let mut answer = ::http::HeaderMap::new();
    changes.apply_to_answer(&mut answer);
    assert_eq!((answer.len(), &answer["set-cookie"]), (1, &"a=b".parse().unwrap()));
    let fields = &[("x-envoy-auth-headers-to-remove", "host")];
    let (providers, dialler, _asked) = provider(form(|_| ()), 200, fields, "").await;
    let (_, _, why) = denied(ask(&providers, &dialler, Some(&request)).await);
    assert!(why.contains("a change that is not made"), "{why}");
}

#[tokio::test]
async fn what_a_no_says_is_passed_on_as_far_as_is_configured() {
    let fields = &[("location", "/login"), ("x-why", "no token"), ("x-inner", "1")];
    let told = async |names: &[&str]| {
        let settings = form(|form| form.to_client_on_deny = patterns(names));
        let (providers, dialler, _asked) = provider(settings, 302, fields, "please log in").await;
        match ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await {
            Answer::Denied { status, headers, body, why } => {
                assert_eq!((status.as_u16(), &*body), (302, &b"please log in"[..]));
                assert!(why.contains("302"), "{why}");
                let names = headers.iter().map(|(name, _)| name.to_string());
                names.filter(|name| name != "date").collect::<Vec<_>>()
            }
            Answer::Admitted(changes) => panic!("{changes:?}"),
        }
    };
    assert_eq!(told(&[]).await, ["location", "x-why", "x-inner"]);
    assert_eq!(told(&["x-why"]).await, ["location", "x-why"]);
}

#[tokio::test]
async fn an_error_of_the_server_is_no_answer() {
    let (providers, dialler, _asked) = provider(form(|_| ()), 500, &[], "oops").await;
    let (status, body, why) = denied(ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await);
    assert_eq!((status, &*body), (403, ""), "the client is not told of the provider's troubles");
    assert!(why.contains("it answered 500"), "{why}");
    let open = ProviderSettings { fail_open: true, ..form(|_| ()) };
    let (providers, dialler, _asked) = provider(open, 503, &[], "").await;
    admitted(ask(&providers, &dialler, Some(&head("GET", "/", &[]))).await);
}
