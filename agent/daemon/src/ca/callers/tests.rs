use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use data_encoding::HEXLOWER;
use tempfile::TempDir;

use super::*;

const TOKEN: &str = "node1-0123456789abcdef";

fn domain() -> TrustDomain {
    "td1".parse().unwrap()
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn write(text: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("callers.yaml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (dir, path)
}

fn problem(text: &str) -> String {
    let (_dir, path) = write(text);
    CallersFile::open(&path, &domain()).unwrap_err().to_string()
}

fn authenticate(
    file: &CallersFile,
    token: Option<&str>,
    certificate: Option<&SpiffeId>,
) -> Result<Caller, Refusal> {
    file.find(token, certificate).map(Caller::Listed)
}

#[tokio::test]
async fn callers_are_known_by_token_hash_or_certificate_and_get_what_is_listed() {
    let hash = HEXLOWER.encode(&sha256(b"node2-0123456789abcdef"));
    let (_dir, path) = write(&format!(
        "callers:\n- {{node: node1, token: {TOKEN}, namespaces: [shop]}}\n\
         - {{node: node2, token-sha256: {hash}, service-accounts: [bank/teller], identities: ['spiffe://td1/ns/bank/sa/audit']}}\n\
         - {{node: node3, certificate: 'spiffe://td1/ns/ambit-system/sa/node3'}}\n"
    ));
    let callers = CallersFile::open(&path, &domain()).unwrap();
    let first = authenticate(&callers, Some(TOKEN), None).unwrap();
    assert_eq!((first.node(), first.proof()), ("node1", "token"));
    first.authorize(&id("spiffe://td1/ns/shop/sa/anything")).await.unwrap();
    let refused = first.authorize(&id("spiffe://td1/ns/bank/sa/teller")).await.unwrap_err();
    assert_eq!(refused.to_string(), "spiffe://td1/ns/bank/sa/teller does not run on node node1");

    let second = authenticate(&callers, Some("node2-0123456789abcdef"), None).unwrap();
    second.authorize(&id("spiffe://td1/ns/bank/sa/teller")).await.unwrap();
    second.authorize(&id("spiffe://td1/ns/bank/sa/audit")).await.unwrap();
    for other in
        ["spiffe://td1/ns/bank/sa/tell", "spiffe://td1/ns/ban/sa/kteller", "spiffe://td2/ns/bank/sa/audit"]
    {
        assert!(second.authorize(&id(other)).await.is_err(), "{other}");
    }

    let agent = id("spiffe://td1/ns/ambit-system/sa/node3");
    let third = authenticate(&callers, None, Some(&agent)).unwrap();
    assert_eq!((third.node(), third.proof()), ("node3", "certificate"));
    assert!(third.authorize(&agent).await.is_err(), "not listed, not even its own");
}

#[test]
fn strangers_are_told_apart_from_those_who_show_nothing() {
    let (_dir, path) = write(&format!(
        "callers:\n- {{node: n, token: {TOKEN}}}\n- {{node: n, certificate: 'spiffe://td1/ns/a/sa/b'}}\n"
    ));
    let callers = CallersFile::open(&path, &domain()).unwrap();
    let known = id("spiffe://td1/ns/a/sa/b");
    assert_eq!(authenticate(&callers, None, None).unwrap_err(), Refusal::NoCredentials);
    for token in ["", "node1", "node1-0123456789abcdeF", &HEXLOWER.encode(&sha256(TOKEN.as_bytes()))] {
        let refused = authenticate(&callers, Some(token), Some(&known)).unwrap_err();
        assert_eq!(refused, Refusal::UnknownCaller("token"), "{token}: a certificate mends no bad token");
    }
    let stranger = id("spiffe://td1/ns/a/sa/c");
    assert!(authenticate(&callers, None, Some(&stranger)).is_err());
}

#[test]
fn what_is_wrong_is_said_without_a_token_in_it() {
    let hash = "0".repeat(64);
    for (text, expected) in [
        ("callers: 5", "docs/ca.md"),
        ("- a", "docs/ca.md"),
        ("", "missing field `callers`"),
        (&format!("callers:\n- {{token: {TOKEN}}}"), "missing field `node`"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, tokens: x}}"), "unknown field `tokens`"),
        (&format!("callers:\n- {{node: a, token: [{TOKEN}]}}"), "docs/ca.md"),
        (&format!("callers:\n- {{node: a, namespaces: {TOKEN}}}"), "docs/ca.md"),
        (&format!("callers:\n- {{node: a, {TOKEN}: }}"), "docs/ca.md"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, {TOKEN}: {TOKEN}}}"), "docs/ca.md"),
        ("callers:\n- {node: a}", "callers[0]: must have exactly one of token"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, token-sha256: '{hash}'}}"), "exactly one"),
        ("callers:\n- {node: a, token: secret-short}", "20 to"),
        ("callers:\n- {node: a, token: secret secret secret}", "no space"),
        ("callers:\n- {node: a, token-sha256: abc}", "64 hexadecimal digits"),
        (&format!("callers:\n- {{node: '', token: {TOKEN}}}"), "not the name of a node"),
        ("callers:\n- {node: a, certificate: 'spiffe://td2/ns/a/sa/b'}", "not in the trust domain td1"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, identities: [web]}}"), "identities:"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, service-accounts: [web]}}"), "NAMESPACE/NAME"),
        (&format!("callers:\n- {{node: a, token: {TOKEN}, namespaces: ['*']}}"), "namespaces:"),
        (
            &format!("callers:\n- {{node: a, token: {TOKEN}}}\n- {{node: b, token: {TOKEN}}}"),
            "callers[1]: an earlier caller",
        ),
    ] {
        let problem = problem(text);
        assert!(problem.contains(expected), "{text}: {problem}");
        assert!(!problem.contains("0123456789") && !problem.contains("secret"), "{problem}");
    }
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let (_dir, path) = write("callers: []");
    for (mode, ok) in
        [(0o644, false), (0o604, false), (0o660, false), (0o602, false), (0o640, true), (0o400, true)]
    {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let outcome = CallersFile::open(&path, &domain());
        assert_eq!(outcome.is_ok(), ok, "{mode:o}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
    assert!(
        CallersFile::open(Path::new("/dev/null"), &domain()).unwrap_err().to_string().contains("regular")
    );
}

#[test]
fn a_change_is_taken_over_and_a_bad_one_is_not() {
    let (_dir, path) = write(&format!("callers:\n- {{node: n1, token: {TOKEN}}}"));
    let callers = CallersFile::open(&path, &domain()).unwrap();
    let known = |callers: &CallersFile| authenticate(callers, Some(TOKEN), None).is_ok();
    for bad in ["callers:\n- {node: n1}", "\u{0}"] {
        fs::write(&path, bad).unwrap();
        callers.take().unwrap_err();
        assert!(known(&callers));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "callers: []").unwrap();
    callers.take().unwrap_err();
    assert!(known(&callers), "open to others: not read");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    callers.take().unwrap();
    assert!(!known(&callers), "a caller that is taken off the list is out");
    fs::remove_file(&path).unwrap();
    callers.take().unwrap_err();
    fs::write(&path, format!("callers:\n- {{node: n2, token: {TOKEN}}}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    callers.take().unwrap();
    assert_eq!(authenticate(&callers, Some(TOKEN), None).unwrap().node(), "n2");
}
