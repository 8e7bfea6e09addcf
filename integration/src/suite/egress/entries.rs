//! Where ServiceEntries lead, whom clients expect there, and what is reached without one.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};

use super::{
    HOST,
    outside::{Listener, Outside, VIP, hold_to_registry},
    told_of,
};
use crate::{agent::IN_FORCE, load::ports, process::eventually, topology::MESHED, world::World};

pub(super) fn entries(world: &mut World) -> Result<()> {
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

pub(super) fn registry_only(world: &mut World) -> Result<()> {
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

/// The agent of b has it run as another service account than the agent of a believes, as where a change has come to one of them only.
pub(super) fn identities(world: &mut World) -> Result<()> {
    const MOVED: &str = "moved";
    let (b, folder) = (world.pod("b").clone(), world.folder.join("other-manifests"));
    fs::create_dir_all(&folder)?;
    for file in fs::read_dir(world.manifests.folder())? {
        let file = file?;
        let text = fs::read_to_string(file.path())?;
        let own = format!("serviceAccountName: {}\n", b.service_account);
        let of_b = text.contains(&format!("podIP: {}\n", b.v4));
        let text = if of_b { text.replace(&own, &format!("serviceAccountName: {MOVED}\n")) } else { text };
        ensure!(!of_b || text.contains(MOVED), "no service account in {text}");
        fs::write(folder.join(file.file_name()), text)?;
    }
    let agent = world.agent_of("b");
    agent.stop()?;
    agent.watch(&folder);
    agent.start()?;

    let moved = b.identity().replace(&format!("/sa/{}", b.service_account), &format!("/sa/{MOVED}"));
    let write = |names: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: b, namespace: {MESHED}}}\nspec: {{hosts: \
             [{HOST}], addresses: [{VIP}], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{{address: {}}}], ports: [{{number: \
             80, name: tcp, protocol: TCP, targetPort: {}}}], subjectAltNames: [{names}]}}\n",
            b.v4,
            ports::WHOAMI,
        );
        world.manifests.write("entry.yaml", &text)
    };
    let refused = |to: (Ipv4Addr, u16)| {
        let mark = world.agents[0].mark();
        eventually(IN_FORCE * 2, || {
            let attempt = world.connect("a", to, &["--send", "hello", "--limit-ms", "1500"])?;
            ensure!(attempt.received.is_empty() && attempt.error.is_some(), "{to:?} answers: {attempt:?}");
            told_of(world, mark, &["access", "identity_mismatch", &moved])
        })
    };
    let direct = (b.v4, ports::WHOAMI);
    refused(direct).context("the pod itself")?;
    write("")?;
    refused((VIP, 80)).context("an entry that names nobody")?;
    write(&moved)?;
    let mark = world.agents[0].mark();
    eventually(IN_FORCE * 2, || {
        let attempt = world.connect("a", (VIP, 80), &["--send", "hello", "--limit-ms", "1500"])?;
        ensure!(attempt.received.starts_with("peer "), "{attempt:?}");
        Ok(())
    })?;
    let line = world.agents[0].wait_log(mark, &["access", "connection complete", HOST, "mutual_tls"])?;
    ensure!(line.contains(&format!("dst.identity=\"{moved}\"")), "the log has somebody else: {line}");
    // What the entry vouches for is nobody else's: neither its sessions nor its word.
    refused(direct).context("the pod itself, beside the entry")?;
    write(&moved.replace(MOVED, "elsewhere"))?;
    refused((VIP, 80)).context("an entry that names another one")
}
