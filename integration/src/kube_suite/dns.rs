//! Names, as pods of a cluster ask for them: by kubelet's resolv.conf, of CoreDNS, with the agent on the way and without it.

use std::{net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Plan, Pod, Site, Test, installed,
    site::{SECOND, SYSTEM},
};
use crate::{
    cluster::{ADDRESS, MANY},
    load::ports,
    process::{self, Process, eventually},
    suite::dns::ASK,
    tools::HTTP_BODY,
};

pub(super) const TESTS: &[Test] = &[installed(
    "dns::a_clusters_names_and_hosts_of_entries",
    "CoreDNS, search lists, truncation, a resolver behind a cluster IP; the agents away, the label taken off",
    names,
)];

/// The host of the entry.
const HOST: &str = "api.example.com";
/// What CoreDNS says of a name that does not exist.
const NO_SUCH_NAME: &str = "3";
const CAPTURE: &str = "ambit.dev/dns-capture";

/// One pod whose DNS is captured and one outside the mesh, both on node a.
struct Scene<'a> {
    site: &'a Site,
    namespace: String,
    within: Pod,
    outside: Pod,
    /// The address that the mesh has for the host.
    vip: String,
}

fn names(site: &mut Site) -> Result<()> {
    let namespace = site.namespace(true)?;
    site.cluster.api.kubectl(&["label", "namespace", &namespace, &format!("{CAPTURE}=enabled")])?;
    let plans = [
        Plan::client("within").on("a"),
        Plan::client("outside").on("a").label("ambit.dev/dataplane", "disabled"),
        Plan::server("web").on("b"),
    ];
    let [within, outside, web] = site.pods(&namespace, &plans)?;
    let mut scene = Scene { site, namespace, within, outside, vip: String::new() };
    scene.make_services()?;
    scene.vip = eventually(20 * SECOND, || {
        let told = scene.told(&scene.within, ADDRESS, HOST, "A")?;
        let vip = told.strip_prefix("0 240.240.").with_context(|| format!("the host is {told:?}"))?;
        Ok(format!("240.240.{vip}"))
    })?;
    scene.as_applications_ask(&web)?;
    scene.answers_are_the_same()?;
    scene.behind_a_cluster_ip()?;
    scene.without_agents()?;
    scene.without_the_label()
}

impl Scene<'_> {
    /// A service of each kind, a host of the mesh's, and the cluster's resolver once more behind a cluster IP.
    fn make_services(&self) -> Result<()> {
        let namespace = &self.namespace;
        let port = json!([{"name": "http", "port": 80, "targetPort": ports::HTTP}]);
        let dns = json!([{"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53}]);
        let service = |name: &str, spec| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": spec});
        let items = json!([
            service("web", json!({"selector": {"app": "web"}, "ports": port})),
            service("headless", json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": port})),
            service("elsewhere", json!({"type": "ExternalName", "externalName": "outside.example.test"})),
            service("resolver", json!({"ports": dns})),
            {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": "resolver", "namespace": namespace, "labels": {"kubernetes.io/service-name": "resolver"}},
                "endpoints": [{"addresses": [ADDRESS]}], "ports": dns,
            },
            {
                "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
                "metadata": {"name": "api", "namespace": namespace},
                "spec": {
                    "hosts": [HOST], "resolution": "STATIC", "workloadSelector": {"labels": {"app": "web"}},
                    "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": ports::HTTP}],
                },
            },
        ]);
        self.site.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))
    }

    /// What a program says that asks a resolver in a pod by sockets of its own.
    fn ask(&self, pod: &Pod, arguments: &[&str]) -> Result<String> {
        let mut command = self.site.in_pod(pod, "python3")?;
        let told = process::run(command.args(["-c", ASK]).args(arguments), 60 * SECOND)?.ok()?;
        Ok(told.trim().to_owned())
    }

    /// The code of the answer and its addresses, the same by UDP, connected and not, and by TCP.
    fn told(&self, pod: &Pod, resolver: &str, name: &str, kind: &str) -> Result<String> {
        self.ask(pod, &["host", resolver, name, kind])
    }

    /// How many messages the agent of node a has passed on.
    fn passed(&self) -> Result<f64> {
        Ok(self.site.metrics("a")?.sum("ambit_dns_messages_total", &["result=\"passed\""]))
    }

    /// By curl, glibc and the pod's own resolv.conf.
    fn as_applications_ask(&self, web: &Pod) -> Result<()> {
        let (site, namespace) = (self.site, &self.namespace);
        let conf = site.cluster.api.kubectl(&[
            "exec",
            "-n",
            namespace,
            "within",
            "--",
            "cat",
            "/etc/resolv.conf",
        ])?;
        let search = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local");
        ensure!(conf.contains(&search) && conf.contains("ndots:5"), "{conf}");
        let page = |pod: &Pod, url: &str| -> Result<()> {
            // CoreDNS takes a moment to know a service.
            let page = eventually(10 * SECOND, || site.curl(pod, &[url])?.ok()).context(url.to_owned())?;
            ensure!(page == HTTP_BODY, "{url}: {page:?}");
            Ok(())
        };
        for pod in [&self.within, &self.outside] {
            let of_namespace = ["", ".NS", ".NS.svc", ".NS.svc.cluster.local", ".NS.svc.cluster.local."];
            for ending in of_namespace {
                page(pod, &format!("http://web{}/", ending.replace("NS", namespace)))?;
            }
            page(pod, &format!("http://headless:{}/", ports::HTTP))?;
            for name in ["outside.example.test", "alias.example.test", "elsewhere", "kubernetes.default"] {
                let port = if name.starts_with("kubernetes") { 443 } else { 6443 };
                let url = format!("https://{name}:{port}/version");
                let answer = site.curl(pod, &["-k", &url])?.ok()?;
                ensure!(answer.contains("gitVersion"), "{url}: {answer}");
            }
            for name in ["nowhere.example.test", "nowhere", "six.example.test"] {
                let none = site.curl(pod, &["-4", &format!("http://{name}/")])?;
                ensure!(none.stderr.contains("Could not resolve host"), "{name}: {}", none.told());
            }
            // glibc asks again by TCP: by UDP there is no room for so many.
            let many = site.curl(pod, &["-v", "--connect-timeout", "1", "http://many.example.test/"])?;
            ensure!(many.stderr.contains("Trying 192.0.2."), "{}", many.told());
        }
        page(&self.within, &format!("http://{HOST}/"))?;
        page(&self.within, &format!("http://{HOST}./"))?;
        let none = site.curl(&self.outside, &[&format!("http://{HOST}/")])?;
        ensure!(none.stderr.contains("Could not resolve host"), "outside the mesh: {}", none.told());
        // The address leads to the pod that the entry selects, by the tunnel.
        let log = site.agents_log()?;
        let line = log.lines().find(|line| {
            ["connection complete", HOST, "mutual_tls", &web.ip.to_string()]
                .iter()
                .all(|word| line.contains(word))
        });
        line.with_context(|| format!("no connection to {HOST} by mutual TLS is in the log")).map(drop)
    }

    /// By UDP and TCP, with the agent on the way and without it.
    fn answers_are_the_same(&self) -> Result<()> {
        let of = |name: &str| format!("{name}.{}.svc.cluster.local", self.namespace);
        let before = self.passed()?;
        let asked = [
            (of("web"), "A", "0 198.18."),
            (of("web"), "AAAA", "0"),
            (format!("_http._tcp.{}", of("web")), "SRV", "0"),
            (of("headless"), "A", "0 198.18.12."),
            (of("elsewhere"), "A", "0"),
            (of("nowhere"), "A", NO_SUCH_NAME),
            (of(HOST), "A", NO_SUCH_NAME),
            (format!("web.{}", of("nowhere")), "A", NO_SUCH_NAME),
            ("outside.example.test".to_owned(), "A", "0 198.18.0.1"),
            ("alias.example.test".to_owned(), "A", "0 198.18.0.1"),
            ("OutSide.Example.Test".to_owned(), "A", "0 198.18.0.1"),
            ("six.example.test".to_owned(), "AAAA", "0 2001:db8::6"),
            ("mail.example.test".to_owned(), "MX", "0"),
            ("nowhere.example.test".to_owned(), "A", NO_SUCH_NAME),
        ];
        for (name, kind, expected) in &asked {
            let within = self.told(&self.within, ADDRESS, name, kind)?;
            let outside = self.told(&self.outside, ADDRESS, name, kind)?;
            ensure!(within == outside, "{name} {kind}: {within:?} with the agent, {outside:?} without");
            ensure!(within.starts_with(expected), "{name} {kind}: {within:?}");
        }
        for pod in [&self.within, &self.outside] {
            let told = self.ask(pod, &["truncated", ADDRESS, "many.example.test"])?;
            ensure!(told == format!("truncated {MANY}"), "{}: {told}", pod.name);
        }
        let passed = self.passed()? - before;
        ensure!(passed >= 3.0 * asked.len() as f64, "only {passed} of them have passed through the agent");
        let host = self.told(&self.within, ADDRESS, HOST, "A")?;
        ensure!(host == format!("0 {}", self.vip), "{host}");
        let outside = self.told(&self.outside, ADDRESS, HOST, "A")?;
        ensure!(outside == NO_SUCH_NAME, "a pod outside the mesh is told {outside}");
        Ok(())
    }

    /// As most clusters have it: kube-proxy leads to the resolver.
    fn behind_a_cluster_ip(&self) -> Result<()> {
        let service = self.site.cluster.api.json(&["get", "service", "resolver", "-n", &self.namespace])?;
        let address: Ipv4Addr = service["spec"]["clusterIP"].as_str().context("a cluster IP")?.parse()?;
        let address = address.to_string();
        let before = self.passed()?;
        for (pod, host) in
            [(&self.within, format!("0 {}", self.vip)), (&self.outside, NO_SUCH_NAME.to_owned())]
        {
            let outside = eventually(10 * SECOND, || self.told(pod, &address, "outside.example.test", "A"))?;
            ensure!(outside == "0 198.18.0.1", "{}: {outside}", pod.name);
            let told = self.told(pod, &address, HOST, "A")?;
            ensure!(told == host, "{} by a cluster IP: {told}", pod.name);
            let told = self.ask(pod, &["truncated", &address, "many.example.test"])?;
            ensure!(told == format!("truncated {MANY}"), "{} by a cluster IP: {told}", pod.name);
        }
        ensure!(self.passed()? > before, "nothing of it has passed through the agent");
        Ok(())
    }

    /// The DaemonSet has no pods on any node: DNS goes on, but for what only the mesh knows.
    fn without_agents(&self) -> Result<()> {
        let log = self.site.cluster.folder().join(format!("{}-steady.log", self.namespace));
        let mut steady = self.site.in_pod(&self.within, "python3")?;
        steady.args(["-c", ASK, "steady", ADDRESS, "outside.example.test", "30"]);
        let mut steady = Process::start(&mut steady, &log)?;
        steady.wait_for("0 198.18.0.1", 10 * SECOND)?;
        self.schedule(Some("nowhere"))?;
        let away = (|| {
            eventually(60 * SECOND, || {
                let told = self.told(&self.within, ADDRESS, HOST, "A")?;
                ensure!(told == NO_SUCH_NAME && self.site.agent("a").is_err(), "an agent answers {told}");
                Ok(())
            })?;
            for name in ["outside.example.test", &format!("web.{}.svc.cluster.local", self.namespace)] {
                let [within, outside] =
                    [&self.within, &self.outside].map(|pod| self.told(pod, ADDRESS, name, "A"));
                let within = within?;
                ensure!(within == outside? && within.starts_with("0 198.18."), "{name}: {within}");
            }
            let told = self.ask(&self.within, &["truncated", ADDRESS, "many.example.test"])?;
            ensure!(told == format!("truncated {MANY}"), "{told}");
            let answer =
                self.site.curl(&self.within, &["-k", "https://outside.example.test:6443/version"])?.ok()?;
            ensure!(answer.contains("gitVersion"), "{answer}");
            Ok(())
        })()
        .context("without agents");
        self.schedule(None)?;
        away?;
        let status = ["rollout", "status", "daemonset/ambit", "--timeout=120s", "-n", SYSTEM];
        self.site.cluster.api.kubectl(&status)?;
        eventually(20 * SECOND, || {
            let told = self.told(&self.within, ADDRESS, HOST, "A")?;
            ensure!(told == format!("0 {}", self.vip), "with agents again, the host is {told}");
            Ok(())
        })?;
        ensure!(steady.wait(60 * SECOND)?.success(), "{}", steady.output());
        let output = steady.output();
        let lost: f64 = output.rsplit_once("lost ").context("lost")?.1.trim().parse()?;
        // One question of each change may be lost, which waits for a second.
        ensure!(lost <= 4.5, "names were not to be had for {lost} s: {output}");
        Ok(())
    }

    /// Has the agents' DaemonSet ask for nodes with a label that none has, or for any.
    fn schedule(&self, label: Option<&str>) -> Result<()> {
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"ambit.dev/test": label}}}}});
        let patch = ["patch", "daemonset", "ambit", "-n", SYSTEM, "--type=merge", "-p", &patch.to_string()];
        self.site.cluster.api.kubectl(&patch).map(drop)
    }

    fn without_the_label(&self) -> Result<()> {
        self.site.cluster.api.kubectl(&["label", "namespace", &self.namespace, &format!("{CAPTURE}-")])?;
        eventually(10 * SECOND, || {
            let told = self.told(&self.within, ADDRESS, HOST, "A")?;
            ensure!(told == NO_SUCH_NAME, "without the label the host is {told}");
            Ok(())
        })?;
        let before = self.passed()?;
        for _ in 0..5 {
            let told = self.told(&self.within, ADDRESS, "outside.example.test", "A")?;
            ensure!(told == "0 198.18.0.1", "without the label: {told}");
        }
        thread::sleep(Duration::from_millis(300));
        let passed = self.passed()? - before;
        ensure!(passed == 0.0, "{passed} messages have passed through the agent without the label");
        Ok(())
    }
}
