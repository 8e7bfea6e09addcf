//! What of a rule is made without a network.

use std::fs;

use ambit_core::{
    discovery::{ClientSettings, ConnectionPool},
    model::{Labels, SpiffeId},
};
use tempfile::TempDir;

use super::*;

fn client() -> Workload {
    Workload {
        name: ObjectName::new("shop", "web"),
        uid: "u".into(),
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse::<SpiffeId>().unwrap(),
        node: "n1".into(),
        ips: vec![],
        labels: Labels::new(),
        named_ports: Default::default(),
        probe_ports: vec![],
        host_network: false,
        enrolled: true,
        http_telemetry: false,
        netns: None,
    }
}

fn rule(tls: ClientTls, pool: ConnectionPool) -> ClientRule {
    let settings = ClientSettings { rule: ObjectName::new("shop", "r"), tls, pool };
    ClientRule { settings: Arc::new(settings), host: "api.example.com".into(), names: vec![], http2: false }
}

fn by_file(path: &str) -> ClientRule {
    let tls = Origination {
        sni: None,
        names: vec![],
        roots: Roots::File(path.into()),
        client: None,
        crl: None,
        insecure: false,
    };
    rule(ClientTls::Originate(Arc::new(tls)), ConnectionPool::default())
}

#[tokio::test]
async fn every_mode_says_what_becomes_of_a_connection() {
    let (egress, world) = (Egress::default(), World::default());
    for (tls, meshed, reason) in [
        (ClientTls::Unset, false, None),
        (ClientTls::Disable, true, None),
        (ClientTls::IstioMutual, true, None),
        (ClientTls::IstioMutual, false, Some(Reason::MtlsUnavailable)),
        (ClientTls::Unusable("it cannot be read".into()), true, Some(Reason::RuleUnusable)),
    ] {
        let rule = rule(tls.clone(), ConnectionPool::default());
        let outside = egress.outside(&world, &client(), &rule, meshed).await;
        assert_eq!(
            outside.map(|tls| tls.is_some()).map_err(|refusal| refusal.reason).err(),
            reason,
            "{tls:?}"
        );
    }
}

#[tokio::test]
async fn files_are_those_of_the_clients_namespace() {
    let (egress, world, dir) = (Egress::default(), World::default(), TempDir::new().unwrap());
    let refused = |rule| {
        let (egress, world) = (&egress, &world);
        async move { egress.outside(world, &client(), &rule, false).await.unwrap_err() }
    };
    let without = refused(by_file("/ca.pem")).await;
    assert!(without.text.contains("--egress-files"), "{without}");
    egress.set_files(dir.path().to_owned());
    fs::create_dir(dir.path().join("shop")).unwrap();
    fs::write(dir.path().join("secret.pem"), "not for shop").unwrap();
    for (path, words) in [
        ("/ca.pem", "No such file"),
        ("/../secret.pem", "leads out of"),
        ("a/../../secret.pem", "leads out of"),
    ] {
        let refusal = refused(by_file(path)).await;
        assert_eq!(refusal.reason, Reason::CredentialsUnavailable);
        assert!(refusal.text.contains(words), "{path}: {refusal}");
    }
    fs::write(dir.path().join("shop/ca.pem"), "no certificate").unwrap();
    let empty = refused(by_file("/ca.pem")).await;
    assert!(empty.text.contains("no certificate in it"), "{empty}");
}

#[test]
fn a_client_has_so_many_connections_to_a_destination_and_no_more() {
    let egress = Egress::default();
    let pool = ConnectionPool { max_connections: Some(2), ..ConnectionPool::default() };
    let rule = rule(ClientTls::Unset, pool);
    let slot = |pod: &str, port| egress.slot(&pod.into(), &rule, port);
    let (first, _second) = (slot("a", 80).unwrap(), slot("a", 80).unwrap());
    assert_eq!(slot("a", 80).unwrap_err().reason, Reason::ConnectionLimit);
    assert!(slot("a", 81).is_ok() && slot("b", 80).is_ok(), "others have places of their own");
    drop(first);
    drop(slot("a", 80).unwrap());
    assert_eq!(egress.open.lock().unwrap().len(), 1, "what is free is not remembered");
}
