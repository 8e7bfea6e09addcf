//! Secrets that DestinationRules name: what agents read of them, and what becomes of connections as they come, change and go.

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Plan, Pod, Site, Test, installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::{
    certs::{self, Certificate},
    process::{self, Process, eventually},
    suite::marker,
};

pub(super) const TESTS: &[Test] = &[installed(
    "egress::secrets_are_read_where_a_rule_names_them",
    "credentialName: without the right, missing, made, changed, unusable, deleted; no plaintext; no other Secret asked for",
    secrets,
)];

const HOST: &str = "api.example.com";
/// Where applications dial the host; it is routed nowhere.
const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 200, 60);
/// Where nginx serves it.
const PORT: u16 = 8443;
/// The Secret that the rules name.
const NAME: &str = "api";
/// Longer than an agent waits before it asks again for a Secret that it may not read.
const ASKED_AGAIN: std::time::Duration = std::time::Duration::from_secs(20);

struct Scene {
    /// The namespace whose Secrets may be read, and one in which they may not.
    shop: String,
    bank: String,
    /// The clients of both, and one in the former that no rule selects.
    buyer: Pod,
    teller: Pod,
    other: Pod,
    folder: PathBuf,
    /// The word of every request, which is not to be seen on the wire.
    word: String,
    /// What the API server had written down before.
    older: usize,
}

fn secrets(site: &mut Site) -> Result<()> {
    let (shop, bank, world) = (site.namespace(true)?, site.namespace(true)?, site.namespace(false)?);
    let [buyer, other] = site.pods(&shop, &[Plan::client("buyer").on("a"), Plan::client("other").on("a")])?;
    let [teller] = site.pods(&bank, &[Plan::client("teller").on("a")])?;
    let [host] = site.pods(&world, &[Plan::client("host").on("b")])?;
    let folder = site.cluster.folder().join(format!("secrets-{shop}"));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    certs::strange_authority(&folder.join("ca"))?;
    let older = site.cluster.api.asked_for_secrets()?.len();
    let scene = Scene { shop, bank, buyer, teller, other, folder, word: marker("plain"), older };
    let _nginx = scene.serve(site, &host)?;
    scene.entry_and_rules(site, &host)?;
    let capture = site.capture("a", "secrets")?;
    let gone_through = scene.refused_until_it_may(site).and_then(|()| scene.as_it_changes(site));
    let seen = capture.stop()?;
    gone_through?;
    ensure!(!seen.contains(&scene.word), "a request that a rule wants under TLS went out in plaintext");
    scene.nothing_else_was_asked_for(site)?;
    // Nobody whom no rule selects has its TLS, or its key.
    let plain = scene.fetch(site, &scene.other)?;
    ensure!(plain.contains("plain HTTP request was sent to HTTPS port"), "whom no rule selects: {plain}");
    site.upgrade(&[])
}

impl Scene {
    /// nginx as the host outside: it demands a certificate, and tells of which serial number.
    fn serve(&self, site: &Site, host: &Pod) -> Result<Process> {
        let server = self.certificate("server", HOST, "1001")?;
        let (folder, own, key) = (self.folder.display(), server.certificate.display(), server.key.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {folder}/{kind};\n"))
            .concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/nginx-error.log;\nevents {{}}\nhttp {{\n\
             access_log off;\n{temporary}server {{\nlisten {PORT} ssl;\nssl_certificate {own};\nssl_certificate_key {key};\n\
             ssl_client_certificate {folder}/ca/ca-cert.pem;\nssl_verify_client on;\n\
             return 200 \"$ssl_client_verify $ssl_client_serial\\n\";\n}}\n}}\n"
        );
        let conf = self.folder.join("nginx.conf");
        fs::write(&conf, text).context("nginx.conf")?;
        let mut nginx = site.in_pod(host, "nginx")?;
        let nginx = Process::start(nginx.arg("-c").arg(&conf), &self.folder.join("nginx.log"))?;
        eventually(10 * SECOND, || {
            let listening =
                process::must(site.in_pod(host, "ss")?.args(["-Hltn", &format!("sport = :{PORT}")]))?;
            ensure!(!listening.trim().is_empty(), "nginx does not listen: {}", nginx.output());
            Ok(())
        })?;
        Ok(nginx)
    }

    fn certificate(&self, name: &str, host: &str, serial: &str) -> Result<Certificate> {
        let names = [format!("DNS:{host}")];
        certs::issue_for(&self.folder.join("ca"), &self.folder, name, &names, certs::VALID, serial)
    }

    /// Both namespaces have a rule that names a Secret `api`, which is then their own.
    fn entry_and_rules(&self, site: &Site, host: &Pod) -> Result<()> {
        site.apply(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "api", "namespace": self.shop},
            "spec": {
                "hosts": [HOST], "addresses": [VIP], "resolution": "STATIC", "endpoints": [{"address": host.ip}],
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": PORT}],
            },
        }))?;
        for (namespace, client) in [(&self.shop, &self.buyer), (&self.bank, &self.teller)] {
            site.apply(&json!({
                "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": "api", "namespace": namespace},
                "spec": {
                    "host": HOST, "workloadSelector": {"matchLabels": {"app": client.name}},
                    "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": NAME}},
                },
            }))?;
        }
        Ok(())
    }

    /// A Secret with a certificate of that serial number; with nonsense in its place where there is none.
    fn secret(&self, site: &Site, name: &str, serial: Option<&str>) -> Result<()> {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
        let client = self.certificate("client", "client.example.com", serial.unwrap_or("FFFF"))?;
        let certificate = match serial {
            Some(_) => read(&client.certificate)?,
            None => "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n".to_owned(),
        };
        site.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.shop},
            "stringData": {
                "tls.crt": certificate, "tls.key": read(&client.key)?,
                "ca.crt": read(&self.folder.join("ca/ca-cert.pem"))?,
            },
        }))
    }

    fn fetch(&self, site: &Site, client: &Pod) -> Result<String> {
        let mut curl = site.in_pod(client, "curl")?;
        let url = format!("http://{VIP}/{}", self.word);
        let arguments = ["-sS", "-m", "8", "--connect-timeout", "4", "--noproxy", "*"];
        process::run(curl.args(arguments).args(["-H", &format!("Host: {HOST}"), &url]), 10 * SECOND)?.ok()
    }

    /// Demands the page, by the certificate of that serial number.
    fn must_be_served(&self, site: &Site, serial: &str, limit: std::time::Duration) -> Result<()> {
        eventually(limit, || {
            let page = self.fetch(site, &self.buyer)?;
            ensure!(page.trim() == format!("SUCCESS {serial}"), "nginx says {page}");
            Ok(())
        })
    }

    /// Demands that a connection is refused, and that the agent says so with these words.
    fn must_be_refused(&self, site: &Site, client: &Pod, words: &[&str]) -> Result<()> {
        eventually(2 * IN_FORCE, || {
            let attempt = site.connect(client, (VIP, 80), &["--send", &self.word, "--limit-ms", "2000"])?;
            ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
            let denials = site.ambit("a", &["denials", "-o", "json"])?.ok()?;
            let denials: Value = serde_json::from_str(&denials).with_context(|| denials.clone())?;
            let latest = denials.as_array().into_iter().flatten().find(|denial| {
                let denial = denial.to_string();
                ["credentials_unavailable", &client.name]
                    .iter()
                    .chain(words)
                    .all(|word| denial.contains(word))
            });
            latest.with_context(|| format!("ambit denials has no line with {words:?}: {denials:#}")).map(drop)
        })
    }

    /// Demands a problem in `ambit status` of the agent with these words.
    fn must_be_told(&self, site: &Site, words: &[&str]) -> Result<()> {
        eventually(10 * SECOND, || {
            let status = site.ambit("a", &["status", "-o", "json"])?.ok()?;
            ensure!(words.iter().all(|word| status.contains(word)), "not all of {words:?} in {status}");
            ensure!(!status.contains("PRIVATE KEY"), "a key is told of");
            Ok(())
        })
    }

    /// The Secret is there, and no agent may read it; then the chart lets them.
    fn refused_until_it_may(&self, site: &Site) -> Result<()> {
        self.secret(site, NAME, Some("2001"))?;
        self.secret(site, "unnamed", Some("2002"))?;
        let missing = format!("Secret {}/{NAME} does not exist, or the agent may not read it", self.shop);
        self.must_be_refused(site, &self.buyer, &[&missing]).context("without the right to read it")?;
        let told = format!("Secret {}/{NAME}, which a DestinationRule names, cannot be read", self.shop);
        self.must_be_told(site, &[&told, "egress.secretNamespaces"])?;
        site.upgrade(&[&format!("egress.secretNamespaces={{{}}}", self.shop)])?;
        self.must_be_served(site, "2001", ASKED_AGAIN).context("with the right to read it")?;
        // A Secret of one name in another namespace is another one, which is not to be read still.
        let missing = format!("Secret {}/{NAME} does not exist, or the agent may not read it", self.bank);
        self.must_be_refused(site, &self.teller, &[&missing]).context("another namespace")
    }

    fn as_it_changes(&self, site: &Site) -> Result<()> {
        for serial in ["2003", "2004"] {
            self.secret(site, NAME, Some(serial))?;
            self.must_be_served(site, serial, IN_FORCE).context("a certificate that has changed")?;
        }
        self.secret(site, NAME, None)?;
        self.must_be_refused(site, &self.buyer, &["the client certificate or its key cannot be used"])
            .context("a certificate that is none")?;
        self.secret(site, NAME, Some("2005"))?;
        self.must_be_served(site, "2005", IN_FORCE).context("a good one again")?;
        site.cluster.api.kubectl(&["delete", "secret", NAME, "-n", &self.shop])?;
        let told = format!("Secret {}/{NAME}, which a DestinationRule names, does not exist", self.shop);
        self.must_be_told(site, &[&told])?;
        let refused = site.connect(&self.buyer, (VIP, 80), &["--send", &self.word, "--limit-ms", "2000"])?;
        ensure!(refused.error.as_deref() == Some("ConnectionRefused"), "the Secret is deleted: {refused:?}");
        self.secret(site, NAME, Some("2006"))?;
        self.must_be_served(site, "2006", IN_FORCE).context("the Secret made anew")?;
        // The right is taken away: what was known stays, as while the API is away.
        site.upgrade(&[])?;
        self.must_be_served(site, "2006", IN_FORCE).context("without the right again")
    }

    /// What the API server wrote down of the agents' requests for Secrets.
    fn nothing_else_was_asked_for(&self, site: &Site) -> Result<()> {
        let agents = format!("system:serviceaccount:{SYSTEM}:ambit");
        let mut asked = BTreeSet::new();
        for line in site.cluster.api.asked_for_secrets()?.get(self.older..).unwrap_or_default().lines() {
            // The last line may be on its way.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            if event["user"]["username"] != agents.as_str() {
                continue;
            }
            let uri = event["requestURI"].as_str().unwrap_or_default();
            let named =
                uri.split(['?', '&']).any(|part| part == format!("fieldSelector=metadata.name%3D{NAME}"));
            if !named {
                bail!("an agent has asked for more than one Secret: {uri}");
            }
            asked.insert(event["objectRef"]["namespace"].as_str().unwrap_or_default().to_owned());
        }
        let own = BTreeSet::from([self.shop.clone(), self.bank.clone()]);
        ensure!(asked.is_superset(&own), "the API server has written down requests for {asked:?} only");
        let strangers: Vec<&String> = asked.difference(&own).collect();
        ensure!(strangers.is_empty(), "Secrets were asked for in {strangers:?}");
        Ok(())
    }
}
