//! The API server and etcd go away for a minute: nothing breaks, and on their return nothing has been missed.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    Plan, Pod, Site, Test, Wire, installed,
    site::{IN_FORCE, SECOND, SYSTEM},
};
use crate::{load::ports, process::eventually};

pub(super) const TESTS: &[Test] = &[installed(
    "outage::a_minute_without_the_api",
    "traffic goes on, a pod that dies comes back; then labels and policies that wait are taken",
    minute,
)];

const MINUTE: Duration = Duration::from_secs(60);

fn minute(site: &mut Site) -> Result<()> {
    let (namespace, late) = (site.namespace(true)?, site.namespace(false)?);
    let plans = [Plan::client("a").on("a"), Plan::server("b").on("b"), Plan::server("mortal").on("b")];
    let [a, b, mortal] = site.pods(&namespace, &plans)?;
    let [x, y] = site.pods(&late, &[Plan::client("x").on("a"), Plan::server("y").on("b")])?;
    site.peer_authentication(&namespace, "STRICT")?;
    eventually(IN_FORCE, || site.must_go(&a, &b, Wire::Tls))?;

    let to = format!("{}:{}", b.ip, ports::ECHO);
    let long =
        site.start_tool(&a, "long", &["ping-pong", "--to", &to, "--for-ms", "80000", "--rest-ms", "10"])?;
    let short = ["churn", "--to", &to, "--count", "10000000", "--for-ms", "80000", "--rest-ms", "10"];
    let short = site.start_tool(&a, "short", &short)?;
    site.cluster.api.kill();
    let lived = while_away(site, &a, &b, &mortal);
    site.cluster.api.resume().context("the API does not come back")?;
    lived?;

    let tally = short.tally(MINUTE)?;
    ensure!(tally.failed == 0 && tally.good > 1_000, "{tally:?}");
    long.end(MINUTE).context("the long connection")?;
    // The pod that died has another address now, which only the API tells to the other node.
    let reborn = eventually(30 * SECOND, || {
        let pod = site.pod(&namespace, "mortal")?;
        ensure!(
            pod.ip != mortal.ip || pod.restarts > mortal.restarts,
            "the API does not know of its restart"
        );
        site.must_go(&a, &pod, Wire::Tls)?;
        Ok(pod)
    })?;
    ensure!(reborn.uid == mortal.uid, "{reborn:?}");
    site.opt_in(&late)?;
    eventually(10 * SECOND, || site.must_go(&x, &y, Wire::Tls)).context("a label after the return")?;
    site.peer_authentication(&late, "STRICT")?;
    site.cluster.api.kubectl(&["delete", "pod", "mortal", "-n", &namespace])?;
    let [next] = site.pods(&namespace, &[Plan::server("next").on("b")])?;
    eventually(IN_FORCE, || site.must_go(&a, &next, Wire::Tls)).context("a pod after the return")?;
    // Kubernetes took both nodes for dead meanwhile, and their pods out of every Service. An agent that is restarted before the
    // CA is back in its own would wait for certificates: that is not what the next test asks.
    let restored = ["rollout", "status", "deployment/ambit-ca", "--timeout=120s", "-n", SYSTEM];
    site.cluster.api.kubectl(&restored).map(drop)
}

fn while_away(site: &Site, a: &Pod, b: &Pod, mortal: &Pod) -> Result<()> {
    thread::sleep(5 * SECOND);
    site.kill_pod(mortal)?;
    thread::sleep(20 * SECOND);
    site.must_reach(a, b).context("half a minute without the API")?;
    let back = site.connect(mortal, (b.ip, ports::WHOAMI), &["--send", "hello"])?;
    ensure!(back.error.is_none(), "the pod that died does not reach its neighbour: {back:?}");
    thread::sleep(35 * SECOND);
    site.must_reach(a, b).context("a minute without the API")
}
