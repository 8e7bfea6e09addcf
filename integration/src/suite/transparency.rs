//! Applications must not notice: each program runs at the same time between two pods outside the mesh, between two in it, and from
//! one outside to one in it, and has to see the same: answers, errors, events, bytes, addresses, and times within bounds.
//!
//! What differs all the same is listed with its reason; a difference that is not listed fails the test, and so does a listed
//! one that is gone.

pub(super) mod clients;
mod differences;
mod programs;

use anyhow::{Result, ensure};

use self::programs::{Topic, Way};
use super::{Test, unstarted};
use crate::world::World;

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "transparency::connecting",
        "connect: whom it reaches, how it fails, from which ports",
        &[],
        |world| {
            alike(
                world,
                &Topic { name: "connecting", text: include_str!("transparency/programs/connecting.py") },
            )
        },
    ),
    unstarted("transparency::accepting", "listen and accept: who comes, in which order", &[], |world| {
        alike(world, &Topic { name: "accepting", text: include_str!("transparency/programs/accepting.py") })
    }),
    unstarted("transparency::data", "bytes: peeked at, urgent, in pipes, in full buffers", &[], |world| {
        alike(world, &Topic { name: "data", text: include_str!("transparency/programs/data.py") })
    }),
    unstarted("transparency::endings", "shutdown, close, resets, linger", &[], |world| {
        alike(world, &Topic { name: "endings", text: include_str!("transparency/programs/endings.py") })
    }),
    unstarted("transparency::polling", "poll, select, epoll: which events come when", &[], |world| {
        alike(world, &Topic { name: "polling", text: include_str!("transparency/programs/polling.py") })
    }),
    unstarted("transparency::options", "socket options: set, asked for, and what they do", &[], |world| {
        alike(world, &Topic { name: "options", text: include_str!("transparency/programs/options.py") })
    }),
    unstarted(
        "transparency::severed",
        "a network that loses everything: keepalive, time-outs",
        &[],
        |world| {
            alike(world, &Topic { name: "severed", text: include_str!("transparency/programs/severed.py") })
        },
    ),
    unstarted(
        "transparency::clients",
        "curl, node, python, Go, psql, redis-cli, FTP, SMTP, HTTP/2",
        &[],
        clients::alike,
    ),
];

/// The topics that a pair of one node has to see alike as well. What a network loses is not among them: there is none.
const ON_ONE_NODE: [Topic; 5] = [
    Topic { name: "connecting", text: include_str!("transparency/programs/connecting.py") },
    Topic { name: "accepting", text: include_str!("transparency/programs/accepting.py") },
    Topic { name: "data", text: include_str!("transparency/programs/data.py") },
    Topic { name: "endings", text: include_str!("transparency/programs/endings.py") },
    Topic { name: "polling", text: include_str!("transparency/programs/polling.py") },
];

/// All of them between two pods of one node, which are joined there or have a tunnel between them.
pub(super) fn on_one_node(world: &mut World, joined: bool) -> Result<()> {
    let way = if joined { Way::OneNode } else { Way::Meshed };
    programs::prepare(world)?;
    world.start_agents()?;
    let mut wrong = Vec::new();
    for topic in &ON_ONE_NODE {
        let [plain, meshed] = programs::run(world, topic, [Way::Plain, Way::OneNode])?;
        match differences::judge(topic.name, way, &plain, &meshed) {
            Ok(note) => world.notes.push(format!("{}: {note}", topic.name)),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn alike(world: &mut World, topic: &Topic) -> Result<()> {
    programs::prepare(world)?;
    world.start_agents()?;
    let [plain, meshed, outside] = programs::run(world, topic, [Way::Plain, Way::Meshed, Way::FromOutside])?;
    let judged = [(Way::Meshed, meshed), (Way::FromOutside, outside)]
        .map(|(way, told)| differences::judge(topic.name, way, &plain, &told));
    let wrong: Vec<String> =
        judged.iter().filter_map(|judged| Some(judged.as_ref().err()?.to_string())).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let [meshed, outside] = judged.map(Result::unwrap_or_default);
    world.notes.push(format!("in the mesh {meshed}"));
    world.notes.push(format!("from outside {outside}"));
    Ok(())
}
