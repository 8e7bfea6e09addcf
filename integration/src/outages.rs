//! An issuer that goes away for longer than certificates live, again and again: how soon its pods are back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{process::eventually, world::World};

/// From an issuer's return to the first connections.
const BACK: Duration = Duration::from_secs(5);
/// How long a connection waits for a certificate that may still come, and a little more.
const CERTIFICATE_WAIT: Duration = Duration::from_millis(5_500);
/// Between two outages: certificates of all pods are there again.
const REST: Duration = Duration::from_secs(8);

/// How often, and for how long each time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outages {
    pub(crate) times: usize,
    pub(crate) each: Duration,
}

/// Two minutes, five times: with certificates of 60 s.
pub(crate) const FIVE_TIMES: Outages = Outages { times: 5, each: Duration::from_secs(120) };

impl Outages {
    /// Has `issuer` go `away` and come `back`, and demands that pods of both nodes reach each other within five seconds of each
    /// return. What `back` does until it returns is the issuer's own start.
    pub(crate) fn bear<I>(
        self,
        world: &mut World,
        issuer: &mut I,
        away: impl Fn(&mut I) -> Result<()>,
        back: impl Fn(&mut I) -> Result<()>,
    ) -> Result<()> {
        let mut took = Vec::new();
        for number in 1..=self.times {
            away(issuer)?;
            thread::sleep(self.each);
            world.must_be_refused("a", "b", CERTIFICATE_WAIT)?;
            back(issuer)?;
            let returned = Instant::now();
            eventually(BACK, || ["a", "e"].iter().try_for_each(|client| world.must_reach(client, "b")))
                .with_context(|| format!("outage {number}"))?;
            took.push(format!("{:.1} s", returned.elapsed().as_secs_f64()));
            thread::sleep(REST);
        }
        let (each, took) = (self.each.as_secs(), took.join(", "));
        world.notes.push(format!("back from {} outages of {each} s after {took}", self.times));
        Ok(())
    }
}
