//! What DestinationRules say of connections to servers in the mesh and outside it.

use std::{fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Result, ensure};

use super::{
    HOST, fetch,
    outside::{self, Listener, Outside, certificate, entry, rule},
    refused, served, told_of, unreached,
};
use crate::{
    agent::IN_FORCE,
    certs,
    load::ports,
    process::eventually,
    topology::{MESHED, UNMESHED},
    world::World,
};

pub(super) fn simple(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let good = certificate(&outside, "good", &[HOST], outside::NOW)?;
    let server = outside.serve(world, 8443, &good, &[])?;
    world.manifests.write("entry.yaml", &entry(&outside, 8443))?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /ca.pem}"))?;
    served(world)?;
    let line = world.agents[0].wait_log(0, &["access", "connection complete", "security", "tls"])?;
    ensure!(line.contains(HOST), "the access log does not name the host: {line}");

    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /strange.pem}"))?;
    refused(world, "certificate_untrusted", &[])?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE}"))?;
    refused(world, "certificate_untrusted", &[])?;
    let named = "{mode: SIMPLE, caCertificates: /ca.pem, subjectAltNames: [other.example.com]}";
    world.manifests.write("rule.yaml", &rule(named))?;
    refused(world, "identity_mismatch", &["other.example.com"])?;
    world
        .manifests
        .write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /ca.pem, sni: other.example.com}"))?;
    refused(world, "identity_mismatch", &["other.example.com"])?;
    world
        .manifests
        .write("rule.yaml", &rule("{mode: SIMPLE, insecureSkipVerify: true, sni: other.example.com}"))?;
    served(world)?;
    world.agents[0].wait_log(0, &["insecureSkipVerify"])?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /missing.pem}"))?;
    refused(world, "credentials_unavailable", &["missing.pem"])?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /../../ca.pem}"))?;
    refused(world, "credentials_unavailable", &["leads out of"])?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPEL}"))?;
    refused(world, "rule_unusable", &["SIMPEL"])?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /ca.pem}"))?;
    served(world)?;

    drop(server);
    let expired = certificate(&outside, "expired", &[HOST], certs::EXPIRED)?;
    let server = outside.serve(world, 8443, &expired, &[])?;
    refused(world, "certificate_expired", &[])?;
    drop(server);
    let plain = Listener::plaintext(world, 8443, "220 plaintext speaks first\r\n")?;
    unreached(world, "tls_handshake", &["plaintext"])?;
    drop(plain);
    unreached(world, "connection_refused", &[])
}

/// Demands that nginx has seen the client's certificate.
fn shown(world: &World) -> Result<()> {
    eventually(IN_FORCE * 2, || {
        let page = fetch(world)?;
        ensure!(page.contains("SUCCESS CN=test"), "nginx says {page}");
        Ok(())
    })
}

pub(super) fn mutual(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let good = certificate(&outside, "good", &[HOST], outside::NOW)?;
    let client = certificate(&outside, "client", &["client.example.com"], outside::NOW)?;
    let _server = outside.nginx(world, 8443, &good)?;
    world.manifests.write("entry.yaml", &entry(&outside, 8443))?;
    world.manifests.write("rule.yaml", &rule("{mode: SIMPLE, caCertificates: /ca.pem}"))?;
    eventually(IN_FORCE * 2, || {
        let page = fetch(world)?;
        ensure!(page.contains("No required SSL certificate was sent"), "without a certificate: {page}");
        Ok(())
    })?;
    let own = outside.files.join(MESHED);
    fs::copy(&client.certificate, own.join("client.pem"))?;
    fs::copy(&client.key, own.join("client.key"))?;
    let files =
        "{mode: MUTUAL, clientCertificate: /client.pem, privateKey: /client.key, caCertificates: /ca.pem}";
    world.manifests.write("rule.yaml", &rule(files))?;
    shown(world)?;
    // A rule without a selector would lend its Secret to everybody.
    world.manifests.write("rule.yaml", &rule("{mode: MUTUAL, credentialName: api}"))?;
    refused(world, "rule_unusable", &["workloadSelector"])?;
    let selecting = rule("{mode: MUTUAL, credentialName: api}")
        .replace("spec: {", "spec: {workloadSelector: {matchLabels: {app: a}}, ");
    world.manifests.write("rule.yaml", &selecting)?;
    refused(world, "credentials_unavailable", &["Secret shop/api does not exist"])?;
    let text = |path: &Path| -> Result<String> {
        Ok(fs::read_to_string(path)?.lines().map(|line| format!("    {line}\n")).collect())
    };
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: api, namespace: {MESHED}}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}  \
         ca.crt: |\n{}",
        text(&client.certificate)?,
        text(&client.key)?,
        text(&outside.folder.join("ca/ca-cert.pem"))?
    );
    world.manifests.write("secret.yaml", &secret)?;
    shown(world)?;
    let status = world.agents[0].status_text()? + &world.agents[0].log();
    ensure!(!status.contains("PRIVATE KEY"), "a key is told of");
    world.manifests.write("secret.yaml", &secret.replace("BEGIN CERTIFICATE", "BEGIN NONSENSE"))?;
    refused(world, "credentials_unavailable", &["shop/api"])?;
    world.manifests.remove("secret.yaml")?;
    refused(world, "credentials_unavailable", &["Secret shop/api does not exist"])
}

pub(super) fn revoked(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let good = certificate(&outside, "good", &[HOST], outside::NOW)?;
    let other = certificate(&outside, "other", &["other.example.com"], outside::NOW)?;
    let own = outside.files.join(MESHED);
    let ca = outside.folder.join("ca");
    let _server = outside.serve(world, 8443, &good, &[])?;
    world.manifests.write("entry.yaml", &entry(&outside, 8443))?;
    let with = |list: &str| rule(&format!("{{mode: SIMPLE, caCertificates: /ca.pem, caCrl: /{list}}}"));
    fs::copy(certs::revoke(&ca, &outside.folder, "other")?, own.join("others.crl"))?;
    fs::copy(certs::revoke(&ca, &outside.folder, "good")?, own.join("good.crl"))?;
    ensure!(other.certificate.exists(), "no certificate beside the server's");
    world.manifests.write("rule.yaml", &with("others.crl"))?;
    served(world)?;
    world.manifests.write("rule.yaml", &with("good.crl"))?;
    refused(world, "certificate_revoked", &[HOST])?;
    fs::write(own.join("bad.crl"), "no list")?;
    world.manifests.write("rule.yaml", &with("bad.crl"))?;
    refused(world, "credentials_unavailable", &[])?;
    world.manifests.write("rule.yaml", &with("others.crl"))?;
    served(world)
}

pub(super) fn within_the_tunnel(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let host = format!("near.{MESHED}.svc.cluster.local");
    let good = certificate(&outside, "near", &[&host], outside::NOW)?;
    let _server = outside.serve_in(world, "b", 8443, &good, &[])?;
    let near = Ipv4Addr::new(198, 19, 100, 61);
    service(world, "near", MESHED, near, ("b", 8443))?;
    world.manifests.write("rule.yaml", &of_service("near", "{mode: SIMPLE, caCertificates: /ca.pem}"))?;
    let url = format!("http://{near}/");
    let fetch = |world: &World| -> Result<()> {
        let page = world.curl("a", &["--connect-timeout", "2", "-m", "4", &url])?.ok()?;
        ensure!(page.contains("s_server"), "the page is {page:?}");
        Ok(())
    };
    eventually(IN_FORCE * 2, || fetch(world))?;
    let mark = world.agents[0].mark();
    fetch(world)?;
    let line = world.agents[0].wait_log(mark, &["access", "connection complete", "near.shop.svc"])?;
    ensure!(line.contains("mutual_tls"), "{line}");
    world
        .manifests
        .write("rule.yaml", &of_service("near", "{mode: SIMPLE, caCertificates: /strange.pem}"))?;
    eventually(IN_FORCE * 2, || {
        let attempt = world.connect("a", (near, 80), &["--send", "GET / HTTP/1.0\r\n\r\n"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
        told_of(world, mark, &["access", "certificate_untrusted", "near"])
    })
}

pub(super) fn headless(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let host = format!("far.{UNMESHED}.svc.cluster.local");
    let good = certificate(&outside, "far", &[&host], outside::NOW)?;
    let _server = outside.serve_in(world, "d", 8443, &good, &[])?;
    let d = world.pod("d").v4;
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: far, namespace: {UNMESHED}}}\nspec:\n  clusterIP: None\n  \
         selector: {{app: d}}\n  ports: [{{name: web, port: 443, targetPort: 8443}}]\n"
    );
    world.manifests.write("far.yaml", &text)?;
    world.manifests.write("rule.yaml", &of_service(&host, "{mode: SIMPLE, caCertificates: /ca.pem}"))?;
    let url = format!("http://{d}:8443/");
    eventually(IN_FORCE * 2, || {
        let page = world.curl("a", &["--connect-timeout", "2", "-m", "4", &url])?.ok()?;
        ensure!(page.contains("s_server"), "the page is {page:?}");
        Ok(())
    })?;
    let mark = world.agents[0].mark();
    world.manifests.write("rule.yaml", &of_service(&host, "{mode: ISTIO_MUTUAL}"))?;
    eventually(IN_FORCE * 2, || {
        let attempt = world.connect("a", (d, 8443), &["--send", "hello"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
        told_of(world, mark, &["access", "mtls_unavailable", "ISTIO_MUTUAL"])
    })?;
    world.must_reach("a", "d")
}

/// A service over one pod that its slice names.
fn service(world: &World, name: &str, namespace: &str, ip: Ipv4Addr, (pod, port): (&str, u16)) -> Result<()> {
    let at = world.pod(pod).v4;
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  clusterIP: {ip}\n  \
         ports: [{{name: who, port: 80}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: {name}-1\n  namespace: {namespace}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         endpoints:\n- addresses: [{at}]\nports: [{{name: who, port: {port}}}]\n"
    );
    world.manifests.write(&format!("{name}.yaml"), &text)
}

/// A DestinationRule for a service.
fn of_service(host: &str, tls: &str) -> String {
    rule(tls).replace(HOST, host)
}

pub(super) fn modes(world: &mut World) -> Result<()> {
    let (near, far) = (Ipv4Addr::new(198, 19, 100, 61), Ipv4Addr::new(198, 19, 100, 62));
    service(world, "near", MESHED, near, ("b", ports::WHOAMI))?;
    service(world, "far", UNMESHED, far, ("d", ports::WHOAMI))?;
    let reach = |world: &World, ip: Ipv4Addr| -> Result<()> {
        let attempt = world.connect("a", (ip, 80), &["--send", "hello", "--limit-ms", "700"])?;
        ensure!(attempt.received.starts_with("peer "), "{ip} is not reached: {attempt:?}");
        Ok(())
    };
    for tls in ["{mode: DISABLE}", "{mode: ISTIO_MUTUAL}", "{}"] {
        world.manifests.write("rule.yaml", &of_service("near", tls))?;
        eventually(IN_FORCE, || reach(world, near))?;
        let mark = world.agents[0].mark();
        reach(world, near)?;
        let line = world.agents[0].wait_log(mark, &["access", "connection complete", "near.shop.svc"])?;
        ensure!(line.contains("mutual_tls"), "with {tls}: {line}");
    }
    // A port that is named has its own settings only.
    let own_port = rule("{mode: ISTIO_MUTUAL}")
        .replace(HOST, &format!("far.{UNMESHED}.svc.cluster.local"))
        .replace("}}\n", ", portLevelSettings: [{port: {number: 80}}]}}\n");
    ensure!(own_port.contains("portLevelSettings"), "{own_port}");
    world.manifests.write("rule.yaml", &own_port)?;
    eventually(IN_FORCE * 2, || reach(world, far))?;
    world.manifests.write(
        "rule.yaml",
        &of_service(&format!("far.{UNMESHED}.svc.cluster.local"), "{mode: ISTIO_MUTUAL}"),
    )?;
    let mark = world.agents[0].mark();
    eventually(IN_FORCE, || {
        let attempt = world.connect("a", (far, 80), &["--send", "hello"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
        Ok(())
    })?;
    world.agents[0].wait_log(mark, &["access", "mtls_unavailable", "ISTIO_MUTUAL"])?;
    world.manifests.write("rule.yaml", &own_port)?;
    eventually(IN_FORCE * 2, || reach(world, far))
}

pub(super) fn bounds(world: &mut World) -> Result<()> {
    let far = Ipv4Addr::new(198, 19, 100, 62);
    service(world, "far", UNMESHED, far, ("d", ports::ECHO))?;
    let pool = |pool: &str| {
        of_service(&format!("far.{UNMESHED}.svc.cluster.local"), "{}")
            .replace("tls: {}", &format!("connectionPool: {{tcp: {pool}}}"))
    };
    let hold =
        |world: &World| world.connect("a", (far, 80), &["--send", "hello", "--no-fin", "--limit-ms", "3000"]);
    world
        .manifests
        .write("rule.yaml", &pool("{maxConnections: 1, connectTimeout: 2s, tcpKeepalive: {time: 5s}}"))?;
    let mark = world.agents[0].mark();
    eventually(IN_FORCE * 3, || {
        std::thread::scope(|scope| {
            let first = scope.spawn(|| hold(world));
            std::thread::sleep(Duration::from_millis(700));
            let second = world.connect("a", (far, 80), &["--send", "hello"])?;
            first.join().map_err(|_| anyhow::anyhow!("a panic"))??;
            ensure!(second.error.as_deref() == Some("ConnectionRefused"), "two at a time: {second:?}");
            Ok(())
        })
    })?;
    world.agents[0].wait_log(mark, &["access", "connection_limit", "maxConnections"])?;
    for pool_of in ["{idleTimeout: 500ms}", "{maxConnectionDuration: 500ms}"] {
        world.manifests.write("rule.yaml", &pool(pool_of))?;
        eventually(IN_FORCE * 3, || {
            let held = hold(world)?;
            ensure!(held.took_ms < 2_500, "with {pool_of} it was held for {} ms: {held:?}", held.took_ms);
            Ok(())
        })?;
    }
    Ok(())
}
