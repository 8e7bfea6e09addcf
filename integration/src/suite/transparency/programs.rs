//! The programs of one topic, run between two pods by Python: what each saw.

use std::{fs, path::PathBuf, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    process,
    topology::{MESHED, UNMESHED},
    world::World,
};

/// Longer than all programs of a topic together take, none of which may hang.
const LIMIT: Duration = Duration::from_secs(180);

/// Programs about one thing.
pub(super) struct Topic {
    pub(super) name: &'static str,
    /// The Python text.
    pub(super) text: &'static str,
}

/// Between which pods a program runs. All ways but one cross the wire between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From c to d, neither of which is in the mesh.
    Plain,
    /// From a to b, both in the mesh.
    Meshed,
    /// From a to e, both in the mesh and on one node.
    OneNode,
    /// From c, which is not in the mesh, to b, which is.
    FromOutside,
}

impl Way {
    /// Client and server.
    pub(super) fn pods(self) -> [&'static str; 2] {
        match self {
            Self::Plain => ["c", "d"],
            Self::Meshed => ["a", "b"],
            Self::OneNode => ["a", "e"],
            Self::FromOutside => ["c", "b"],
        }
    }

    /// The address of a pod from which nothing comes back.
    pub(super) fn silent(self) -> &'static str {
        match self {
            Self::Plain | Self::FromOutside => "198.18.2.60",
            Self::Meshed | Self::OneNode => "198.18.2.50",
        }
    }

    /// The address of a pod to which there is no way: its node says so by ICMP.
    fn unreachable(self) -> &'static str {
        match self {
            Self::Plain | Self::FromOutside => "198.18.2.61",
            Self::Meshed | Self::OneNode => "198.18.2.51",
        }
    }
}

/// What one program told.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    /// Its name.
    pub(super) program: String,
    /// What it saw, in order.
    pub(super) saw: Vec<(String, Value)>,
}

/// Pods that are known and not there, for an agent that starts now.
pub(super) fn prepare(world: &World) -> Result<()> {
    let mut manifests = Vec::new();
    for (way, namespace) in [(Way::Plain, UNMESHED), (Way::Meshed, MESHED)] {
        for (kind, ip) in [("silent", way.silent()), ("unreachable", way.unreachable())] {
            manifests.push(format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {kind}\n  namespace: {namespace}\n  uid: {kind}-{namespace}\nspec:\n  \
                 nodeName: elsewhere\n  containers: [{{name: main, image: example.invalid/main:1}}]\nstatus:\n  phase: Running\n  \
                 podIP: {ip}\n"
            ));
            let route = if kind == "silent" { "blackhole" } else { "unreachable" };
            world.topology.nodes[1].netns.ip(&["route", "add", route, ip])?;
        }
    }
    world.manifests.write("nobody.yaml", &manifests.join("---\n"))
}

/// Runs a topic's programs on each way, all ways at the same time.
pub(super) fn run<const N: usize>(world: &World, topic: &Topic, ways: [Way; N]) -> Result<[Vec<Told>; N]> {
    let file = written(world, topic)?;
    thread::scope(|scope| {
        let running = ways.map(|way| {
            let file = &file;
            scope.spawn(move || run_one(world, file, way))
        });
        let told = running.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked"))));
        let told: Vec<Vec<Told>> = told.into_iter().collect::<Result<_>>()?;
        told.try_into().map_err(|_| anyhow::anyhow!("another number of ways"))
    })
}

fn written(world: &World, topic: &Topic) -> Result<PathBuf> {
    let folder = world.folder.join("programs");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("program.py"), include_str!("programs/program.py"))?;
    let file = folder.join(format!("{}.py", topic.name));
    fs::write(&file, topic.text).with_context(|| file.display().to_string())?;
    Ok(file)
}

fn run_one(world: &World, file: &PathBuf, way: Way) -> Result<Vec<Told>> {
    let [client, server] = way.pods().map(|pod| {
        let pod = world.pod(pod);
        json!([pod.netns.path(), pod.v4, pod.v6])
    });
    let site = json!({
        "client": client, "server": server, "silent": way.silent(), "others": way != Way::FromOutside, "unreachable": way.unreachable(),
        "router": world.topology.nodes[0].netns.path(), "table": format!("severed-{}", way.pods().concat()),
    });
    let mut python = Command::new("python3");
    python.arg(file).arg(site.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
    let text = process::run(&mut python, LIMIT)?.ok()?;
    let told = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    let told: Vec<Told> = told.collect::<Result<_>>()?;
    ensure!(!told.is_empty(), "no program ran");
    Ok(told)
}
