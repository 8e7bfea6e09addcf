//! Keys that are fetched: when, from where, and what stays in use when they cannot be.

use tokio::time::{Instant, sleep};

use super::{
    issuer::{Say, Server},
    *,
};
use crate::jwt::fetch::Blocked;

fn tokens(refresh: Duration) -> Tokens {
    let fetching = Fetching { ca_file: None, blocked: Arc::new(Blocked::nothing()) };
    Tokens::new(JwksSettings { fetching, refresh }, Telemetry::new())
}

fn fetched(issuer: &str, url: Option<String>) -> Vec<Arc<JwtRule>> {
    let keys = url.map_or(Keys::Discovered, |url| Keys::Url(url.into()));
    vec![Arc::new(JwtRule { keys, timeout_ms: 500, ..rule(issuer) })]
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn takes(tokens: &Tokens, rules: &[Arc<JwtRule>], token: &str) -> &'static str {
    match tokens.judge_at(rules, &mut bearer(token), at(NOW)) {
        Ok(Some(_)) => "ok",
        Ok(None) => "none",
        Err(bad) => bad.text,
    }
}

#[tokio::test]
async fn keys_are_fetched_from_their_url_or_where_the_issuer_says() {
    let key = Key::new("k", "ES256");
    let server = Server::start([Say::Body(set(&[&key]))]).await;
    let (tokens, rules) =
        (tokens(Duration::from_secs(60)), fetched("a", Some(format!("http://{}/jwks?v=1", server.addr))));
    let token = key.token(&claims("a"));
    assert_eq!(takes(&tokens, &rules, &token), "Jwks remote fetch is failed");
    tokens.follow(rules.iter().cloned());
    until("keys", || takes(&tokens, &rules, &token) == "ok").await;
    assert_eq!(server.asked(), ["/jwks?v=1"]);

    let configuration = r#"{"issuer": "x", "jwks_uri": "http://{server}/keys"}"#;
    server.say([Say::Body(configuration.into()), Say::Body(set(&[&key]))]);
    for slash in ["", "/"] {
        let issuer = format!("http://{}/realm{slash}", server.addr);
        let rules = fetched(&issuer, None);
        server.say([Say::Body(configuration.into()), Say::Body(set(&[&key]))]);
        tokens.follow(rules.iter().cloned());
        let token = key.token(&claims(&issuer));
        until("discovered keys", || takes(&tokens, &rules, &token) == "ok").await;
        let asked = server.asked();
        assert_eq!(asked[asked.len() - 2..], ["/realm/.well-known/openid-configuration", "/keys"]);
    }
    let statuses = tokens.issuers();
    assert_eq!((statuses.len(), statuses[0].keys, &*statuses[0].error), (1, 1, ""), "{statuses:?}");
}

/// The next set counts from the next request on, and a token by the key that was taken away does not.
#[tokio::test]
async fn keys_that_rotate_are_followed_and_keys_that_are_gone_do_not_count() {
    let (first, second) = (Key::new("1", "ES256"), Key::new("2", "EdDSA"));
    let server = Server::start([Say::Body(set(&[&first]))]).await;
    let (tokens, rules) =
        (tokens(Duration::from_millis(100)), fetched("a", Some(format!("http://{}/", server.addr))));
    tokens.follow(rules.iter().cloned());
    let (by_first, by_second) = (first.token(&claims("a")), second.token(&claims("a")));
    until("the first", || takes(&tokens, &rules, &by_first) == "ok").await;
    server.say([Say::Body(set(&[&first, &second]))]);
    until("both", || takes(&tokens, &rules, &by_second) == "ok").await;
    assert_eq!(takes(&tokens, &rules, &by_first), "ok");
    server.say([Say::Body(set(&[&second]))]);
    until("the second", || takes(&tokens, &rules, &by_first) != "ok").await;
    assert_eq!(takes(&tokens, &rules, &by_second), "ok");
}

#[tokio::test]
async fn what_is_no_set_of_keys_replaces_none() {
    let key = Key::new("k", "ES256");
    for bad in [
        Say::Body("<html>".into()),
        Say::Body(r#"{"keys": []}"#.into()),
        Say::Body(r#"{"keys": [{"kty": "oct", "k": "AAAA"}]}"#.into()),
        Say::Head("503 Service Unavailable"),
        Say::Head("302 Found\r\nlocation: http://127.0.0.1:1/"),
        Say::Head("204 No Content"),
        Say::Endless,
        Say::Nothing,
    ] {
        let server = Server::start([Say::Body(set(&[&key]))]).await;
        let (tokens, rules) =
            (tokens(Duration::from_millis(50)), fetched("a", Some(format!("http://{}/", server.addr))));
        tokens.follow(rules.iter().cloned());
        let token = key.token(&claims("a"));
        until("keys", || takes(&tokens, &rules, &token) == "ok").await;
        server.say([bad.clone()]);
        until("trouble", || !tokens.issuers()[0].error.is_empty()).await;
        assert_eq!(takes(&tokens, &rules, &token), "ok", "{bad:?}: {:?}", tokens.issuers());
        server.say([Say::Body(set(&[&key]))]);
        until("its end", || tokens.issuers()[0].error.is_empty()).await;
    }
}

/// A token of a key that nobody has heard of, be it under a name that somebody has, brings the next set, and a flood of them no
/// flood.
#[tokio::test]
async fn an_unknown_key_is_asked_for_but_not_often() {
    for name in ["2", "1"] {
        let (first, second) = (Key::new("1", "ES256"), Key::new(name, "ES256"));
        let server = Server::start([Say::Body(set(&[&first]))]).await;
        // Long before the keys are old.
        let (tokens, rules) =
            (tokens(Duration::from_secs(600)), fetched("a", Some(format!("http://{}/", server.addr))));
        tokens.follow(rules.iter().cloned());
        until("keys", || takes(&tokens, &rules, &first.token(&claims("a"))) == "ok").await;
        tokio::time::pause();
        let token = second.token(&claims("a"));
        for _ in 0..29 {
            assert_ne!(takes(&tokens, &rules, &token), "ok");
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(server.asked().len(), 1, "none within the time that keys are left alone");
        server.say([Say::Body(set(&[&second]))]);
        // What is on the network takes real time.
        tokio::time::resume();
        until("the new key", || takes(&tokens, &rules, &token) == "ok").await;
        assert_eq!(server.asked().len(), 2);
    }
}

#[tokio::test]
async fn issuers_that_no_rule_names_are_left_alone_and_their_keys_kept() {
    let key = Key::new("k", "ES256");
    let server = Server::start([Say::Body(set(&[&key]))]).await;
    let (tokens, rules) =
        (tokens(Duration::from_millis(50)), fetched("a", Some(format!("http://{}/", server.addr))));
    let token = key.token(&claims("a"));
    assert!(tokens.settled());
    tokens.follow(rules.iter().cloned());
    until("keys", || takes(&tokens, &rules, &token) == "ok").await;
    assert!(tokens.settled());
    tokens.follow([]);
    assert!(tokens.issuers().is_empty());
    assert_ne!(takes(&tokens, &rules, &token), "ok");
    sleep(Duration::from_millis(100)).await;
    let asked = server.asked().len();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked().len(), asked);
    server.say([Say::Nothing]);
    tokens.follow(rules.iter().cloned());
    assert_eq!(takes(&tokens, &rules, &token), "ok", "without a fetch");
}

#[tokio::test]
async fn addresses_of_the_host_are_not_dialled() {
    let key = Key::new("k", "ES256");
    let server = Server::start([Say::Body(set(&[&key]))]).await;
    let port = server.addr.port();
    for host in ["127.0.0.1", "localhost", "2130706433", "127.1", "[::ffff:127.0.0.1]", "[::1]"] {
        let tokens = Tokens::default();
        let rules = fetched("a", Some(format!("http://{host}:{port}/")));
        tokens.follow(rules.iter().cloned());
        until("an answer", || !tokens.issuers()[0].error.is_empty()).await;
        let error = tokens.issuers()[0].error.clone();
        assert!(error.contains("keys may not be fetched from"), "{host}: {error}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn what_cannot_be_fetched_says_why() {
    let server = Server::start([Say::Nothing]).await;
    let at = |path: &str| Some(format!("http://{}{path}", server.addr));
    let here = format!("http://{}", server.addr);
    for (issuer, url, say, expected) in [
        ("a", at("/"), Say::Nothing, "no answer within 500 ms"),
        ("a", at("/k"), Say::Head("404 Not Found"), "/k answers 404 Not Found"),
        ("a", at("/k"), Say::Endless, "breaks off, or is longer than 524288 bytes"),
        ("a", at("/k"), Say::Body("x".into()), "it is not JSON with a list named keys"),
        ("a", Some("http://u:p@h.example/".into()), Say::Nothing, "is not the URL of an http"),
        ("not a url", None, Say::Nothing, "is not the URL of an http"),
        ("a", Some("http://nowhere.invalid/".into()), Say::Nothing, "cannot resolve nowhere.invalid"),
        (&*here, None, Say::Body("{}".into()), "is no OpenID configuration with a jwks_uri"),
    ] {
        server.say([say]);
        let tokens = tokens(Duration::from_secs(60));
        tokens.follow(fetched(issuer, url.clone()));
        until("an answer", || !tokens.issuers()[0].error.is_empty()).await;
        let error = tokens.issuers()[0].error.clone();
        assert!(error.contains(expected), "{issuer} {url:?}: {error}");
    }
}

/// Attempts in a row a second apart, then pauses that double up to an hour; keys that nobody could fetch again go after a week.
#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_away_is_asked_less_and_less_and_its_keys_end() {
    use crate::jwt::{
        issuers::{Issuer, LONGEST, Source},
        refresh,
    };

    let settings = JwksSettings { refresh: refresh::INTERVAL, ..JwksSettings::default() };
    // Blocked, so that every attempt fails at once.
    let source = Source { issuer: "a".into(), url: Some("http://127.0.0.1:1/".into()) };
    let (issuer, telemetry) = (Issuer::new(source), Telemetry::new());
    issuer.take(KeySet::parse(SET.as_bytes()).unwrap());
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    tokio::spawn(refresh::keep(issuer.clone(), Arc::new(settings), permits, telemetry.clone()));
    let failed = || {
        let metrics = telemetry.encode();
        let line = metrics.lines().find(|line| line.starts_with("ambit_jwks_fetches_total")).unwrap_or("0");
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    sleep(Duration::from_secs(8)).await;
    assert_eq!(failed(), 8, "at once, and seven times more");
    sleep(Duration::from_secs(50)).await;
    assert_eq!(failed(), 8);
    sleep(Duration::from_secs(25)).await;
    assert_eq!(failed(), 16, "after a minute");
    sleep(Duration::from_secs(24 * 3600)).await;
    let day = failed();
    assert!((8 * 24..8 * 40).contains(&day), "hourly in the end: {day}");
    assert_eq!(issuer.status().keys, 1);
    sleep(LONGEST).await;
    assert_eq!(issuer.status().keys, 0);
}
