//! Which endpoint of a service takes a connection: those that are near, and others where one does not answer.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use super::{OWN_V4, refused, taken_by};
use crate::{agent::IN_FORCE, load::ports, manifests::pod_uid, process, topology::MESHED, world::World};

/// Where nothing listens.
const CLOSED: u16 = 7_777;
/// An address on the pods' network that is nobody's.
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 250);

/// An endpoint of the service: the pod, its port, and hints.
type Endpoint<'a> = (&'a str, u16, &'a str);

/// Writes a service whose endpoints have a slice each.
fn write(world: &World, spec: &str, endpoints: &[Endpoint<'_>], beside: &str) -> Result<()> {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: {MESHED}}}\nspec:\n  clusterIP: {OWN_V4}\n  \
         ports: [{{name: who, port: 80}}]\n{spec}{beside}"
    );
    for (at, (name, port, hints)) in endpoints.iter().enumerate() {
        let (address, reference) = if *name == "nobody" {
            (NOBODY, String::new())
        } else {
            let pod = world.pod(name);
            let uid = pod_uid(pod);
            (pod.v4, format!("  targetRef: {{kind: Pod, name: {name}, namespace: {MESHED}, uid: {uid}}}\n"))
        };
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: own-{at}\n  namespace: {MESHED}\n  \
             labels: {{kubernetes.io/service-name: own}}\naddressType: IPv4\nendpoints:\n- addresses: [{address}]\n{reference}\
             {hints}ports: [{{name: who, port: {port}}}]\n"
        );
    }
    world.manifests.write("own.yaml", &text)
}

/// Waits until one endpoint takes all connections.
fn always(world: &World, expected: &str) -> Result<()> {
    process::eventually(IN_FORCE, || {
        for _ in 0..20 {
            let server = taken_by(world)?;
            ensure!(server == expected, "{server} was reached, not {expected}");
        }
        Ok(())
    })
}

pub(super) fn near(world: &mut World) -> Result<()> {
    let node = |pod: &str| world.topology.nodes[world.pod(pod).node].name.clone();
    let own = node("a");
    let zone = |zone: &str| format!("  hints: {{forZones: [{{name: {zone}}}]}}\n");
    let zones = |east: &str, west: &str| {
        format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {own}, labels: {{topology.kubernetes.io/zone: {east}}}}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {{name: other, labels: {{topology.kubernetes.io/zone: {west}}}}}\n"
        )
    };
    let (east, west) = (zone("east"), zone("west"));
    let hinted = [("b", ports::WHOAMI, &*east), ("e", ports::WHOAMI, &*west)];
    write(world, "  trafficDistribution: PreferSameZone\n", &hinted, &zones("east", "west"))?;
    always(world, "b")?;
    write(world, "  trafficDistribution: PreferSameZone\n", &hinted, &zones("west", "east"))?;
    always(world, "e")?;
    // The node goes before the zone.
    let node = |node: &str, zone: &str| {
        format!("  hints: {{forZones: [{{name: {zone}}}], forNodes: [{{name: {node}}}]}}\n")
    };
    let (here, there) = (node(&own, "east"), node("other", "west"));
    let hinted = [("b", ports::WHOAMI, &*here), ("e", ports::WHOAMI, &*there)];
    write(world, "  trafficDistribution: PreferSameNode\n", &hinted, &zones("west", "east"))?;
    always(world, "b")?;
    // In a zone without endpoints of its own all are used.
    let hinted = [("b", ports::WHOAMI, &*east), ("e", ports::WHOAMI, &*west)];
    write(world, "  trafficDistribution: PreferClose\n", &hinted, &zones("north", "east"))?;
    process::eventually(IN_FORCE, || {
        let reached: Vec<String> = (0..16).map(|_| taken_by(world)).collect::<Result<_>>()?;
        ensure!(reached.iter().any(|pod| pod == "b") && reached.iter().any(|pod| pod == "e"), "{reached:?}");
        Ok(())
    })?;
    world.manifests.remove("own.yaml")
}

pub(super) fn refusing(world: &mut World) -> Result<()> {
    let mark = world.agents[0].mark();
    write(world, "", &[("b", CLOSED, ""), ("e", ports::WHOAMI, "")], "")?;
    always(world, "e")?;
    world.agents[0].wait_log(mark, &["another is tried", "connection_refused"])?;
    // Affinity moves to the one that answers, and stays there.
    write(world, "  sessionAffinity: ClientIP\n", &[("b", CLOSED, ""), ("e", ports::WHOAMI, "")], "")?;
    for _ in 0..10 {
        let server = taken_by(world)?;
        ensure!(server == "e", "{server}");
    }
    // Where all refuse, the application hears it, and soon.
    write(world, "", &[("b", CLOSED, ""), ("e", CLOSED, "")], "")?;
    process::eventually(IN_FORCE, || {
        let attempt = world.connect("a", (OWN_V4, 80), &[])?;
        ensure!(refused(attempt.error.as_deref()) && attempt.took_ms < 1_000, "{attempt:?}");
        Ok(())
    })?;
    world.manifests.remove("own.yaml")
}

pub(super) fn silent(world: &mut World) -> Result<()> {
    write(world, "", &[("nobody", ports::WHOAMI, ""), ("e", ports::WHOAMI, "")], "")?;
    process::eventually(IN_FORCE, || {
        let attempt = world.connect("a", (OWN_V4, 80), &["--limit-ms", "12000"])?;
        ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
        Ok(())
    })?;
    let mut slowest = 0;
    for _ in 0..20 {
        let attempt = world.connect("a", (OWN_V4, 80), &["--limit-ms", "12000"])?;
        let server = attempt.received.split_whitespace().nth(3).with_context(|| format!("{attempt:?}"))?;
        ensure!(server.starts_with(&world.pod("e").v4.to_string()), "{attempt:?}");
        slowest = slowest.max(attempt.took_ms);
    }
    ensure!(slowest < 8_000, "{slowest} ms for one of them");
    world.manifests.remove("own.yaml")
}

pub(super) fn denying(world: &mut World) -> Result<()> {
    let deny = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny-e, namespace: {MESHED}}}\n\
         spec: {{selector: {{matchLabels: {{app: e}}}}, action: DENY, rules: [{{}}]}}\n"
    );
    let mark = world.agents[0].mark();
    write(world, "", &[("b", ports::WHOAMI, ""), ("e", ports::WHOAMI, "")], "")?;
    world.manifests.write("deny-e.yaml", &deny)?;
    process::eventually(IN_FORCE * 2, || {
        let attempts: Vec<_> =
            (0..24).map(|_| world.connect("a", (OWN_V4, 80), &[])).collect::<Result<_>>()?;
        let through = attempts.iter().filter(|attempt| attempt.received.starts_with("peer ")).count();
        let denied = attempts.iter().filter(|attempt| refused(attempt.error.as_deref())).count();
        ensure!(through > 0 && denied > 0 && through + denied == 24, "{through} through, {denied} refused");
        Ok(())
    })?;
    world.agents[0].wait_log(mark, &["access", "policy_denied", "deny-e"])?;
    world.manifests.remove("deny-e.yaml")?;
    world.manifests.remove("own.yaml")
}
