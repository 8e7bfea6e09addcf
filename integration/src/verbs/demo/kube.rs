//! The demo on a real Kubernetes, as an operator would go about it.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use super::How;
use crate::{
    capture::is_tls,
    console::{self, Console},
    kube_suite::{Kit, Plan, Pod, Site, Wire, probed_pods_must_stay_ready},
    load::ports,
    process::{self, eventually},
    sandbox::{self, Sandbox},
};

/// How the demo runs.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    kit: Kit,
    #[command(flatten)]
    how: How,
}

const LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
pub(in crate::verbs) fn run(args: &Args) -> Result<ExitCode> {
    sandbox::supervised(|sandbox| {
        let How { keep, json, seconds } = args.how;
        let console = Console::new(json);
        console.heading("1. A real Kubernetes: control plane and two nodes, each in namespaces of its own");
        let mut site = Site::up(sandbox, &args.kit, "kube")?;
        console.line(indented(&site.cluster.api.kubectl(&["get", "nodes", "-o", "wide"])?));
        let scene = install(&mut site, console)?;
        label(&site, &scene, console)?;
        strict(&mut site, &scene, console)?;
        let (direct, ambit) = figures(&site, &scene, seconds, console)?;
        if json {
            let gbps = json!({ "plaintext": direct / 1e9, "ambit": ambit / 1e9 });
            console::answer(&json!({ "seconds": seconds, "one_stream_gbps": gbps }));
        }
        if keep {
            leave_running(sandbox, site, &scene, console)
        } else {
            console.line("\nTaking everything down again.");
            site.down()
        }
    })
}

/// The pods of the demo: two to be meshed, two not.
struct Scene {
    shop: String,
    a: Pod,
    b: Pod,
    c: Pod,
    d: Pod,
}

fn install(site: &mut Site, console: Console) -> Result<Scene> {
    console.heading("2. Pods that talk in plaintext; then helm install");
    let (shop, legacy) = (site.namespace(false)?, site.namespace(false)?);
    let pair = |client: &str, server: &str| [Plan::client(client).on("a"), Plan::server(server).on("b")];
    let [a, b] = site.pods(&shop, &pair("a", "b"))?;
    let [c, d] = site.pods(&legacy, &pair("c", "d"))?;
    console.line(indented(&site.cluster.api.kubectl(&["get", "pods", "-A", "-o", "wide"])?));
    eventually(LIMIT, || site.must_go(&a, &b, Wire::Plaintext))?;
    console.good("pod a on node a sends to pod b on node b: tcpdump between the nodes reads every word");
    console
        .line("  helm install ambit deploy/charts/ambit --namespace ambit-system --create-namespace --wait");
    site.install(&[])?;
    console.line(indented(&site.cluster.api.kubectl(&[
        "get",
        "pods",
        "-n",
        "ambit-system",
        "-o",
        "wide",
    ])?));
    console.good("an agent on each node, and the CA; the pods above have not been touched");
    Ok(Scene { shop, a, b, c, d })
}

fn label(site: &Site, scene: &Scene, console: Console) -> Result<()> {
    console.heading("3. One label, and running pods are in the mesh");
    console.line(format_args!("  kubectl label namespace {} ambit.dev/dataplane=enabled", scene.shop));
    site.opt_in(&scene.shop)?;
    eventually(LIMIT, || site.must_go(&scene.a, &scene.b, Wire::Tls))?;
    let capture = site.capture("a", "demo")?;
    let secret = "the-secret-of-this-demo";
    let url = format!("http://{}:{}/", scene.b.ip, ports::HTTP);
    console.line(format_args!("  pod a $ curl -d {secret} {url}"));
    let answer = site.curl(&scene.a, &["-d", secret, &url])?.ok()?;
    ensure!(answer == secret, "pod b should send back {secret:?}, not {answer:?}");
    console.line(format_args!("  {answer}"));
    let seen = capture.stop()?;
    ensure!(!seen.contains(secret), "the secret is readable between the nodes");
    let openings = seen.openings((scene.b.ip.into(), ports::HTTP));
    ensure!(openings.iter().all(|bytes| is_tls(bytes)), "not TLS: {openings:02x?}");
    console.good(format_args!(
        "between the nodes: {} packets, still to {}:{}, and not one byte of it readable",
        seen.packets.len(),
        scene.b.ip,
        ports::HTTP
    ));
    let after = site.pod(&scene.shop, "b")?;
    ensure!(after == scene.b, "pod b was restarted: {after:?}");
    console.good("nothing was restarted");
    Ok(())
}

fn strict(site: &mut Site, scene: &Scene, console: Console) -> Result<()> {
    console.heading("4. STRICT: who is outside is refused, and kubelet probes go on");
    site.must_reach(&scene.c, &scene.b)?;
    console.good("no policy (PERMISSIVE): pod c, outside the mesh, reaches pod b in plaintext");
    site.peer_authentication(&scene.shop, "STRICT")?;
    console.line(format_args!("  kubectl apply: PeerAuthentication {}/default, mode STRICT", scene.shop));
    eventually(LIMIT, || site.must_not_reach(&scene.c, &scene.b))?;
    console.good("STRICT: pod c is reset");
    let probed = site.namespace(true)?;
    site.peer_authentication(&probed, "STRICT")?;
    let pods = probed_pods_must_stay_ready(site, &probed)?;
    console.good("pods with HTTP, TCP and gRPC probes are ready under STRICT, and stay so");
    let url = format!("http://{}:{}/", pods[0].ip, ports::HTTP);
    let mut curl = site.cluster.access().on_node("a", "curl")?;
    let refused = process::run(curl.args(["-sS", "-m", "5", &url]), Duration::from_secs(10))?;
    ensure!(!refused.status.success(), "a process of the node that is no kubelet got an answer");
    console.line(format_args!("  node a $ curl {url}"));
    console.line(format_args!("  {}", refused.stderr.trim_end()));
    console.good("the same port, asked by another process of the node: refused");
    Ok(())
}

fn figures(site: &Site, scene: &Scene, seconds: u32, console: Console) -> Result<(f64, f64)> {
    console.heading(format_args!("5. iperf3 from node to node ({seconds} s each)"));
    let direct = site.iperf(&scene.c, &scene.d, seconds)?;
    let ambit = site.iperf(&scene.a, &scene.b, seconds)?;
    console.line(format_args!("  plaintext, pod c to pod d   {:>6.2} Gbit/s", direct / 1e9));
    console.line(format_args!(
        "  ambit, pod a to pod b       {:>6.2} Gbit/s  {:.2}×",
        ambit / 1e9,
        ambit / direct
    ));
    Ok((direct, ambit))
}

fn leave_running(sandbox: &Sandbox, site: Site, scene: &Scene, console: Console) -> Result<()> {
    sandbox.keep()?;
    console.heading("Still running. To look around:");
    let shop = &scene.shop;
    for (what, command) in [
        ("pods", "kubectl get pods -A -o wide".to_owned()),
        ("a shell in pod a", format!("kubectl exec -it -n {shop} a -- sh")),
        ("pod b over HTTP, from there", format!("curl http://{}:{}/", scene.b.ip, ports::HTTP)),
        ("the wire between nodes", "node a tcpdump -ni eth0 -X tcp and net 198.18.12.0/24".to_owned()),
        ("the agents' logs", "kubectl logs -n ambit-system ds/ambit -f".to_owned()),
        ("what Helm knows", "helm list -A".to_owned()),
        ("ambit off again", "helm uninstall ambit -n ambit-system".to_owned()),
        ("the end of it", "down".to_owned()),
    ] {
        console.line(format_args!("  {what:<28} cargo xtask cluster {command}"));
    }
    // Dropping the cluster would end it.
    std::mem::forget(site);
    Ok(())
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}\n")).collect::<String>().trim_end().to_owned()
}
