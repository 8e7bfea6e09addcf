//! A client in many network namespaces at once: one thread in each, none of which may ever be refused or cut.

use std::{
    fs::File,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::clients::{Tally, exchange, finish, open};
use crate::netns::Netns;

/// How `crowd` plays.
#[derive(Clone, Debug, clap::Args)]
pub struct Crowd {
    /// The network namespaces: all whose name begins so.
    #[arg(long)]
    pub prefix: String,
    /// The echo server.
    #[arg(long)]
    pub to: SocketAddr,
    /// Play for this long, in milliseconds.
    #[arg(long)]
    pub for_ms: u64,
    /// Rest between two rounds of one namespace, in milliseconds.
    #[arg(long)]
    pub rest_ms: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CrowdTally {
    /// Namespaces played in.
    pub pods: usize,
    /// Short connections: opened, a message there and back, closed.
    pub short: Tally,
    /// Long connections, one in each namespace: good are those that lasted to the end.
    pub long: Tally,
}

/// Plays; the namespaces begin one after another within the first rest.
pub(super) fn run(how: &Crowd) -> Result<CrowdTally> {
    let pods = Netns::with_prefix(&how.prefix)?;
    ensure!(!pods.is_empty(), "no network namespace begins with {}", how.prefix);
    let start = Instant::now();
    let end = start + Duration::from_millis(how.for_ms);
    let mut total = CrowdTally { pods: pods.len(), ..CrowdTally::default() };
    thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let first = Duration::from_millis(how.rest_ms * number as u64 / pods.len() as u64);
            let work = move || -> Result<(Tally, std::io::Result<()>)> {
                let netns = File::open(pod.path()).with_context(|| pod.name().to_owned())?;
                // Only of this thread.
                setns(netns, CloneFlags::CLONE_NEWNET).with_context(|| pod.name().to_owned())?;
                thread::sleep(first);
                Ok(play(how, end))
            };
            threads.push(thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, work)?);
        }
        for thread in threads {
            let (short, long) = thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))?;
            total.short.add(short);
            total.long.note(long);
        }
        Ok(())
    })?;
    total.short.took_ms = start.elapsed().as_millis().try_into()?;
    total.long.took_ms = total.short.took_ms;
    Ok(total)
}

fn play(how: &Crowd, end: Instant) -> (Tally, std::io::Result<()>) {
    let mut short = Tally::default();
    let mut long = open(how.to);
    let mut round = 0;
    while Instant::now() < end {
        if let Ok(stream) = &mut long
            && let Err(error) = exchange(stream, round)
        {
            long = Err(error);
        }
        short.note(open(how.to).and_then(|mut stream| {
            exchange(&mut stream, round)?;
            finish(stream)
        }));
        round += 1;
        thread::sleep(Duration::from_millis(how.rest_ms));
    }
    let lasted =
        long.and_then(|mut stream: TcpStream| exchange(&mut stream, round).and_then(|()| finish(stream)));
    (short, lasted)
}
