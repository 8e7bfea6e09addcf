//! Connections to what is not in the mesh: DestinationRules with TLS, ServiceEntries, and who may go outside at all. The servers are
//! openssl's and PostgreSQL's own, in a pod that no manifest tells of.

mod names;
mod outside;

use std::{fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

pub(super) use self::outside::hold_to_registry;
use self::outside::{Listener, Outside, VIP, certificate, entry, rule};
use super::{Test, own};
use crate::{
    agent::IN_FORCE,
    certs,
    load::ports,
    process::eventually,
    topology::{MESHED, UNMESHED},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    own(
        "egress::names_in_tls_let_through",
        "REGISTRY_ONLY and an entry without addresses: by its name and a wildcard; another name, and none, are not",
        &[],
        names::let_through,
    ),
    own(
        "egress::what_goes_outside_is_seen",
        "--observe-outbound: logged with the name in TLS, and suggested by it; servers that speak first do not wait",
        &["--observe-outbound", "on"],
        names::seen,
    ),
    own(
        "egress::postgresql_speaks_its_own_tls",
        "through an entry, end to end: psql verifies the server by its name",
        &[],
        names::postgresql,
    ),
    own(
        "egress::tls_is_spoken_for_the_application",
        "SIMPLE to openssl s_server: roots, names, dates, bad servers and unreadable rules, each with its reason",
        &[],
        simple,
    ),
    own(
        "egress::a_client_certificate_is_shown",
        "MUTUAL to nginx, from files and from a Secret that a rule names; without it nginx refuses",
        &[],
        mutual,
    ),
    own(
        "egress::case_49_disable_takes_no_tunnel_away",
        "nor does any mode of an enrolled target; ISTIO_MUTUAL to one that is not is refused",
        &[],
        modes,
    ),
    own(
        "egress::a_revoked_certificate_is_not_believed",
        "caCrl: a list of the server's CA, first without the server and then with it",
        &[],
        revoked,
    ),
    own(
        "egress::tls_of_a_rule_goes_through_the_tunnel",
        "SIMPLE for a server in the mesh that speaks TLS itself: the page comes, by mutual TLS on the wire",
        &[],
        within_the_tunnel,
    ),
    own(
        "egress::a_rule_holds_where_a_pod_is_dialled",
        "of a headless service: ISTIO_MUTUAL refuses, SIMPLE is spoken, other ports are left alone",
        &[],
        headless,
    ),
    own(
        "egress::connections_are_held_to_their_bounds",
        "maxConnections, idleTimeout and maxConnectionDuration of a rule",
        &[],
        bounds,
    ),
    own(
        "egress::entries_lead_where_they_say",
        "NONE, STATIC, DNS and DNS_ROUND_ROBIN, WorkloadEntries; an endpoint in the mesh by the tunnel",
        &[],
        entries,
    ),
    own(
        "egress::only_what_is_registered_is_reached",
        "REGISTRY_ONLY of one namespace: refused, counted, suggested; the cluster goes on",
        &[],
        registry_only,
    ),
];

/// The host of the server outside.
const HOST: &str = "api.example.com";

/// What curl has of the server by its virtual address, in plaintext.
fn fetch(world: &World) -> Result<String> {
    // Until it is captured, nothing answers there.
    let (host, url) = (format!("Host: {HOST}"), format!("http://{VIP}/"));
    world.curl("a", &["--connect-timeout", "1", "-m", "4", "-H", &host, &url])?.ok()
}

/// Demands that the page comes.
fn served(world: &World) -> Result<()> {
    eventually(IN_FORCE * 2, || {
        let page = fetch(world)?;
        ensure!(page.contains("s_server"), "the page is {page:?}");
        Ok(())
    })
}

/// Demands a line of the agent's log with all of these words, which may be on its way.
fn told_of(world: &World, mark: usize, words: &[&str]) -> Result<()> {
    std::thread::sleep(Duration::from_millis(100));
    let log = world.agents[0].log_since(mark);
    let told = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(told, "no line of the agent's log has all of {words:?}");
    Ok(())
}

/// Demands that connections fail for `reason`, told in the log and counted.
fn failed(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    let mark = world.agents[0].mark();
    eventually(IN_FORCE * 2, || {
        let attempt =
            world.connect("a", (VIP, 80), &["--send", "GET / HTTP/1.0\r\n\r\n", "--limit-ms", "1500"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "for {reason}: {attempt:?}");
        told_of(world, mark, &[&["access", reason], words].concat())
    })?;
    let label = format!("reason=\"{reason}\"");
    let counted = world.agents[0].metrics()?.sum("ambit_refusals_total", &[&label]);
    ensure!(counted >= 1.0, "the metric of {reason} is {counted}");
    Ok(())
}

/// Whether `ambit denials` tells of this reason.
fn denied(world: &World, reason: &str) -> Result<bool> {
    let denials = world.agents[0].ask(&["denials"])?;
    Ok(denials.as_array().context("denials")?.iter().any(|denial| denial["reason"] == reason))
}

/// Demands that the agent refuses connections for `reason`, and remembers it as its own decision.
fn refused(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    failed(world, reason, words)?;
    ensure!(denied(world, reason)?, "ambit denials does not tell of {reason}");
    Ok(())
}

/// Demands that connections fail for `reason`, which is the server's doing and no decision of the agent's.
fn unreached(world: &World, reason: &str, words: &[&str]) -> Result<()> {
    failed(world, reason, words)?;
    ensure!(!denied(world, reason)?, "ambit denials tells of {reason}");
    Ok(())
}

fn simple(world: &mut World) -> Result<()> {
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

fn mutual(world: &mut World) -> Result<()> {
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

fn revoked(world: &mut World) -> Result<()> {
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

fn within_the_tunnel(world: &mut World) -> Result<()> {
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

fn headless(world: &mut World) -> Result<()> {
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

fn modes(world: &mut World) -> Result<()> {
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

fn bounds(world: &mut World) -> Result<()> {
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

fn entries(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let _who = Listener::plaintext(world, 9090, "outside\r\n")?;
    let reach = |world: &World, ip: Ipv4Addr, words: &str| {
        eventually(IN_FORCE * 2, || {
            let attempt = world.connect("a", (ip, 80), &["--send", "hello", "--limit-ms", "700"])?;
            ensure!(attempt.received.contains(words), "{ip} answers {attempt:?}");
            Ok(())
        })
    };
    let at = outside.v4;
    let write = |world: &World, spec: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: {MESHED}}}\nspec: {{hosts: \
             [{HOST}], ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 9090}}], {spec}}}\n"
        );
        world.manifests.write("entry.yaml", &text)
    };
    for (spec, ip) in [
        (format!("addresses: [{VIP}], resolution: STATIC, endpoints: [{{address: {at}}}]"), VIP),
        (format!("addresses: [{VIP}], resolution: DNS, endpoints: [{{address: {at}}}]"), VIP),
        (format!("addresses: [{VIP}], resolution: DNS_ROUND_ROBIN, endpoints: [{{address: {at}}}]"), VIP),
        (
            format!(
                "addresses: [{VIP}], resolution: STATIC, endpoints: [{{address: {at}, ports: {{tcp: 9090}}}}]"
            ),
            VIP,
        ),
        // A network has no place in the map of destinations.
        (
            format!("addresses: [198.19.200.0/24], resolution: STATIC, endpoints: [{{address: {at}}}]"),
            Ipv4Addr::new(198, 19, 200, 7),
        ),
    ] {
        write(world, &spec)?;
        reach(world, ip, "outside").with_context(|| spec.clone())?;
    }
    let mark = world.agents[0].mark();
    write(world, &format!("addresses: [{VIP}], resolution: DNS, endpoints: [{{address: no-such.invalid}}]"))?;
    eventually(IN_FORCE * 4, || {
        let attempt = world.connect("a", (VIP, 80), &["--send", "hello", "--limit-ms", "8000"])?;
        ensure!(attempt.error.is_some(), "{attempt:?}");
        told_of(world, mark, &["access", "name_unresolved", "no-such.invalid"])
    })?;
    write(
        world,
        &format!("addresses: [{VIP}], resolution: STATIC, workloadSelector: {{labels: {{kind: vm}}}}"),
    )?;
    let workload = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, namespace: {MESHED}}}\nspec: {{address: {at}, \
         labels: {{kind: vm}}, ports: {{tcp: 9090}}}}\n"
    );
    world.manifests.write("workload.yaml", &workload)?;
    reach(world, VIP, "outside")?;
    // What is in the mesh is reached by the tunnel, whoever names it.
    let b = world.pod("b").v4;
    write(
        world,
        &format!(
            "addresses: [{VIP}], resolution: STATIC, endpoints: [{{address: {b}, ports: {{tcp: {}}}}}]",
            ports::WHOAMI
        ),
    )?;
    reach(world, VIP, "peer ")?;
    let line = world.agents[0].wait_log(0, &["access", "connection complete", HOST, "mutual_tls"])?;
    ensure!(line.contains(&b.to_string()), "{line}");
    Ok(())
}

fn registry_only(world: &mut World) -> Result<()> {
    let outside = Outside::build(world)?;
    let _who = Listener::plaintext(world, 9090, "outside\r\n")?;
    let reach = |world: &World| -> Result<()> {
        let attempt = world.connect("a", (outside.v4, 9090), &["--send", "hello"])?;
        ensure!(attempt.received.contains("outside"), "{attempt:?}");
        Ok(())
    };
    reach(world)?;
    let usual = fs::read_to_string(world.manifests.folder().join("namespaces.yaml"))?;
    hold_to_registry(world)?;
    let mark = world.agents[0].mark();
    eventually(IN_FORCE, || {
        let attempt = world.connect("a", (outside.v4, 9090), &["--send", "hello"])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
        Ok(())
    })?;
    world.agents[0].wait_log(mark, &["access", "egress_denied", &outside.v4.to_string()])?;
    let counted = world.agents[0].metrics()?.sum_of_value("egress_denied");
    ensure!(counted >= 1.0, "the metric of egress_denied is {counted}");
    // The cluster goes on, in the mesh and outside it, and so does the pod itself.
    world.must_reach("a", "b")?;
    world.must_reach("a", "d")?;
    // A namespace that says nothing is as before, and so is a pod outside the mesh.
    let unmeshed = world.connect("c", (outside.v4, 9090), &["--send", "hello"])?;
    ensure!(unmeshed.received.contains("outside"), "{unmeshed:?}");
    let suggested = world.agents[0].run(&["suggest", "--service-entries"])?.ok()?;
    ensure!(suggested.contains(&outside.v4.to_string()) && suggested.contains("9090"), "{suggested}");
    world.manifests.write("suggested.yaml", &suggested)?;
    eventually(IN_FORCE, || reach(world))?;
    world.manifests.remove("suggested.yaml")?;
    world.manifests.write("namespaces.yaml", &usual)?;
    eventually(IN_FORCE, || reach(world))
}
