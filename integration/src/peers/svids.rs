//! What a real SPIRE gives: certificates, renewals, another signing key, and the end of the one before.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Test, spire::Spire};
use crate::{
    certs, crowd::Crowd, dialled::Dialled, load::ports, manifests::pod_uid, outages::FIVE_TIMES,
    process::eventually, world::World,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::spire_gives_pods_their_svids",
        about: "traffic on SVIDs that openssl verifies; a pod without an entry is refused, and why is told",
        work: issued,
    },
    Test {
        name: "peers::spire_renews_under_load",
        about: "SVIDs of 20 s for 45 s: no call fails",
        work: renewed,
    },
    Test {
        name: "peers::spire_rotates_taints_and_revokes",
        about: "another signing key, the old one tainted and revoked: no call fails, old connections are cut",
        work: rotated,
    },
    Test {
        name: "peers::spire_follows_pods_that_are_replaced",
        about: "by k8s:pod-uid and pod-label; pods of SVIDs of 20 s replaced under their accounts: no call fails for 45 s",
        work: replaced,
    },
    Test {
        name: "peers::spire_agent_is_back_after_expiry",
        about: "a SPIRE agent away until SVIDs of 20 s have ended: pods reach each other within 5 s of its return",
        work: returned,
    },
    Test {
        name: "peers::spire_rolls_twenty_pods_by_their_uids",
        about: "20 accounts' pods replaced, entries by k8s:pod-uid, SVIDs of 20 s: nothing is refused then and for 45 s",
        work: |stage, world| rolled(stage, world, SHORT, 45),
    },
    Test {
        name: "peers::soak_spire_rolls_twenty_pods",
        about: "the same with SVIDs of 60 s for five minutes",
        work: |stage, world| rolled(stage, world, 60, 300),
    },
    Test {
        name: "peers::soak_spire_is_away_five_times",
        about: "for two minutes each, with SVIDs of 60 s: pods reach each other within 5 s of each return",
        work: again_and_again,
    },
];

const SECOND: Duration = Duration::from_secs(1);
/// The lives of certificates, in seconds: for tests in which they last, and in which they do not.
const LONG: u32 = 3_600;
const SHORT: u32 = 20;
/// Until a change at the server is known to SPIRE's agents, which ask every second, and to ours.
const HEARD: Duration = Duration::from_secs(20);
/// The life of certificates, in seconds, where tunnels have to follow them: new connections take a tunnel for a fifth of it.
const ROTATED: u32 = 30;
const TUNNELS_RENEWED: Duration = Duration::from_secs(8);
/// From the return of a SPIRE agent to the first connections.
const BACK: Duration = Duration::from_secs(5);
/// How long a connection waits for a certificate that may still come, and a little more.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(5_500);

fn issued(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let spire = Spire::start(&stage.kit.programs, world)?;
    spire.serve_agents(world);
    ["a", "b"].iter().try_for_each(|pod| spire.entry(world, pod, LONG))?;
    world.agents.iter_mut().try_for_each(crate::agent::Agent::spawn)?;
    eventually(HEARD, || serials(world, 2))?;
    world.must_reach("a", "b")?;
    let root = world.folder.join("spire-root.pem");
    fs::write(&root, spire.bundle()?)?;
    for pod in ["a", "b"] {
        let identity = world.pod(pod).identity();
        let pem = world.agent_of(pod).certs_pem(&identity)?;
        let leaf = *certs::blocks(&pem).first().context("no certificate")?;
        certs::verify(&world.folder, &[leaf], &root).with_context(|| format!("the SVID of {pod}"))?;
    }
    let client = world.pod("a").identity();
    world.agents[1].wait_log(0, &["access", &client])?;

    // Pod e has no entry.
    let mark = world.agents[0].mark();
    world.must_be_refused("e", "b", CERTIFICATE_WAIT)?;
    let line = world.agents[0].wait_log(mark, &["access", "identity_unavailable"])?;
    let identity = world.pod("e").identity();
    ensure!(line.contains("no entry") && line.contains(&identity), "the log does not say why: {line}");
    let told = last_error(world, &identity)?;
    ensure!(told.contains("no entry"), "the agent's certificates do not say why: {told}");
    let status = world.agents[0].status()?;
    ensure!(status.to_string().contains("no entry"), "ambit status does not say why: {status:#}");
    spire.entry(world, "e", LONG)?;
    eventually(HEARD, || world.must_reach("e", "b"))
}

fn renewed(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let spire = started(stage, world, SHORT)?;
    let mut load = Dialled::start(world, "a", "b", 45)?;
    let (failures, issued) = ("ambit_certificate_failures_total", "ambit_certificates_issued_total");
    // Until SPIRE's agents knew the entries, ours asked in vain.
    let before = (sum(world, issued)?, sum(world, failures)?);
    let good = load.none_failed()?;
    let rounds = load.lasted()?;
    let (renewals, failures) = (sum(world, issued)? - before.0, sum(world, failures)? - before.1);
    world.notes.push(format!(
        "{renewals} renewals of three SVIDs, {failures} failed; {good} short connections, none failed; {rounds} round trips on \
         the long one"
    ));
    drop(spire);
    // Three identities, each at least twice in its lifetime: SPIRE renews at half-life.
    ensure!(renewals >= 9.0 && failures == 0.0, "{renewals} renewals, {failures} attempts failed");
    Ok(())
}

fn rotated(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let spire = started(stage, world, ROTATED)?;
    let (old, before) = (spire.active()?, serials(world, 3)?);
    let mut load = Dialled::start(world, "a", "b", 120)?;
    let new = spire.prepare()?;
    eventually(HEARD, || roots(world, 2)).context("the prepared key's root")?;
    spire.activate(&new)?;
    spire.taint(&old)?;
    // SPIRE replaces what the tainted key has signed, at once and not at half-life.
    eventually(HEARD * 2, || {
        let now = serials(world, 3)?;
        ensure!(now.iter().all(|serial| !before.contains(serial)), "not all are renewed: {now:?}");
        Ok(())
    })
    .context("certificates of the tainted key")?;
    thread::sleep(TUNNELS_RENEWED);
    ensure!(load.long.runs(), "the long connection ended before its root did: {}", load.long.output());
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    spire.revoke(&old)?;
    eventually(HEARD, || roots(world, 1)).context("the revoked key's root")?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    // Whichever agent sees it first cuts the connection, and tells the other.
    for (agent, mark) in world.agents.iter().zip(marks) {
        agent.wait_log(mark, &["access", "root_withdrawn", &to])?;
    }
    let ended = load.long.wait(SECOND * 5)?;
    ensure!(!ended.success(), "a connection under the revoked root went on: {}", load.long.output());
    world.must_reach("a", "b")?;
    load.end();
    let good = load.none_failed()?;
    world.notes.push(format!("{good} short connections from key to key, none failed"));
    Ok(())
}

fn replaced(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let spire = Spire::start(&stage.kit.programs, world)?;
    spire.serve_agents(world);
    let by_uid = |world: &World, pod: &str, uid: &str| {
        spire.entry_by(world, pod, &[format!("k8s:pod-uid:{uid}")], SHORT)
    };
    let pods = ["a", "b"];
    let first = pods.map(|pod| by_uid(world, pod, &pod_uid(world.pod(pod))));
    let first = first.into_iter().collect::<Result<Vec<_>>>()?;
    world.agents.iter_mut().try_for_each(crate::agent::Agent::spawn)?;
    eventually(HEARD, || serials(world, 2))?;
    eventually(HEARD, || world.must_reach("a", "b"))?;
    // As in a rolling update: another pod, then its entry, and that of the one before goes.
    world.topology.replace("a", "a", true)?;
    world.replace_pod("b", "b", true)?;
    for (pod, entry) in pods.into_iter().zip(&first) {
        let uid = format!("uid-{pod}-heir");
        world.manifests.pod_as(&world.topology, world.pod(pod), &uid)?;
        by_uid(world, pod, &uid)?;
        spire.delete(entry)?;
    }
    eventually(HEARD, || world.must_reach("a", "b"))?;
    // A pod whose entry asks for a label gets the label.
    spire.entry_by(world, "e", &["k8s:pod-label:tier:gold".into()], SHORT)?;
    world.manifests.pod(&world.topology, world.pod("e"), &[("tier", "gold")])?;
    eventually(HEARD, || world.must_reach("e", "b")).context("another label")?;
    let mut load = Dialled::start(world, "a", "b", 45)?;
    let (good, rounds) = (load.none_failed()?, load.lasted()?);
    world.notes.push(format!("{good} short connections, none failed; {rounds} round trips on the long one"));
    Ok(())
}

fn returned(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut spire = started(stage, world, SHORT)?;
    spire.kill_agent(0)?;
    let identity = world.pod("a").identity();
    eventually(SECOND * 10, || {
        let told = last_error(world, &identity)?;
        ensure!(told.contains("no SPIRE agent at"), "before the end the last error is {told:?}");
        Ok(())
    })?;
    eventually(SECOND * 30, || {
        let certs = world.agents[0].certs()?;
        let all = certs["certificates"].as_array().context("certificates")?;
        let own = all.iter().find(|one| one["identity"] == identity).context("none of pod a")?;
        ensure!(own["state"] == "expired", "{own}");
        Ok(())
    })?;
    // Long enough for back-offs to have grown.
    thread::sleep(SECOND * 8);
    world.must_be_refused("a", "b", CERTIFICATE_WAIT)?;
    let told = last_error(world, &identity)?;
    ensure!(told.contains("no SPIRE agent at") && !told.contains("clock"), "after the end it is {told:?}");
    let skews = sum(world, "ambit_certificate_clock_skews_total")?;
    ensure!(skews == 0.0, "{skews} clock skews, and no clock is off");
    let netns = world.topology.nodes[0].netns.clone();
    spire.resume_agent(0, &netns)?;
    let back = Instant::now();
    eventually(BACK, || ["a", "e"].iter().try_for_each(|client| world.must_reach(client, "b")))?;
    world.notes.push(format!("back after {:.1} s", back.elapsed().as_secs_f64()));
    Ok(())
}

/// A rolling update: one after another twenty pods get an heir under their account, with an entry for its UID alone; then the pod
/// goes, and its entry. Those that are there call pod b all the while.
fn rolled(stage: &Stage<'_>, world: &mut World, ttl: u32, seconds: u64) -> Result<()> {
    const PODS: usize = 20;
    let spire = Spire::start(&stage.kit.programs, world)?;
    spire.serve_agents(world);
    ["a", "b", "e"].iter().try_for_each(|pod| spire.entry(world, pod, ttl))?;
    let crowd = Crowd::build(world, 2 * PODS)?;
    let entry = |pod: usize, account: usize| {
        let selectors = [format!("k8s:pod-uid:{}", crowd.uid(pod))];
        spire.entry_of(0, &crowd.identity(account), &selectors, ttl)
    };
    let mut entries = Vec::new();
    for pod in 0..PODS {
        entries.push(entry(pod, pod)?);
        crowd.announce_one(world, pod, pod)?;
    }
    world.agents.iter_mut().try_for_each(crate::agent::Agent::spawn)?;
    eventually(HEARD * 2, || serials(world, PODS + 3))?;
    world.agents.iter_mut().try_for_each(crate::agent::Agent::wait_ready)?;
    let mut load = Dialled::start(world, "a", "b", 240)?;
    for (pod, old) in entries.iter().enumerate() {
        crowd.announce_one(world, PODS + pod, pod)?;
        entry(PODS + pod, pod)?;
        thread::sleep(SECOND);
        crowd.withdraw(world, pod)?;
        spire.delete(old)?;
    }
    let tally = crowd.play((world.pod("b").v4, ports::ECHO), seconds, SECOND / 4)?;
    load.end();
    let good = load.none_failed()?;
    world.notes.push(format!(
        "{} pods in the place of others for {seconds} s: {} short connections, {} failed; of {} long ones {} failed; {good} more \
         between two that stayed",
        tally.pods, tally.short.good, tally.short.failed, tally.long.good + tally.long.failed, tally.long.failed
    ));
    ensure!(tally.pods == PODS && tally.short.failed == 0 && tally.long.failed == 0, "{tally:?}");
    crowd.remove(world)
}

fn again_and_again(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let mut spire = started(stage, world, 60)?;
    let netns = world.topology.nodes[0].netns.clone();
    let away = |spire: &mut Spire| spire.kill_agent(0);
    FIVE_TIMES.bear(world, &mut spire, away, |spire| spire.resume_agent(0, &netns))
}

/// SPIRE with an entry for each pod, and both agents ready on it.
fn started(stage: &Stage<'_>, world: &mut World, ttl: u32) -> Result<Spire> {
    let spire = Spire::start(&stage.kit.programs, world)?;
    spire.serve_agents(world);
    ["a", "b", "e"].iter().try_for_each(|pod| spire.entry(world, pod, ttl))?;
    world.agents.iter_mut().try_for_each(crate::agent::Agent::spawn)?;
    // Before their pods are enrolled agents let them talk in plaintext: what is waited for is certificates.
    eventually(HEARD, || serials(world, 3))?;
    world.agents.iter_mut().try_for_each(crate::agent::Agent::wait_ready)?;
    ["a", "e"].iter().try_for_each(|client| world.must_reach(client, "b"))?;
    Ok(spire)
}

fn sum(world: &World, name: &str) -> Result<f64> {
    world.agents.iter().map(|agent| Ok(agent.metrics()?.sum(name, &[]))).sum()
}

/// The serial numbers of all certificates of both agents, `expected` of them.
fn serials(world: &World, expected: usize) -> Result<Vec<String>> {
    let mut serials = Vec::new();
    for agent in &world.agents {
        let certs = agent.certs()?;
        let all = certs["certificates"].as_array().context("certificates")?;
        let issued = all.iter().filter_map(|one| one["serial"].as_str()).filter(|serial| !serial.is_empty());
        serials.extend(issued.map(str::to_owned));
    }
    ensure!(serials.len() == expected, "{} certificates, not {expected}", serials.len());
    Ok(serials)
}

fn roots(world: &World, expected: usize) -> Result<()> {
    for agent in &world.agents {
        let certs = agent.certs()?;
        let found = certs["roots"].as_array().map_or(0, Vec::len);
        ensure!(found == expected, "{} trusts {found} roots: {certs:#}", agent.node().name);
    }
    Ok(())
}

fn last_error(world: &World, identity: &str) -> Result<String> {
    let certs = world.agents[0].certs()?;
    let all = certs["certificates"].as_array().context("certificates")?;
    let own = all.iter().find(|one| one["identity"] == identity);
    Ok(own.and_then(|one| one["lastError"].as_str()).unwrap_or_default().to_owned())
}
