//! Keeps the agent small: what only its start needed goes once it serves, what a crowd of connections needed to come goes back
//! once it is there, and the rest soon after it has gone. Costs nothing while connections come and go one by one.

use std::time::Duration;

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{
    capture::{give_back_heap, let_go_of_code},
    instance::Readiness,
    proxy::Proxy,
    tunnel::call_in_spares,
};

const TICK: Duration = Duration::from_secs(1);
/// How long after a crowd has gone memory is given back: what was the connections' at once, and later that of the tunnels
/// that have waited in vain for more.
const AFTER: [u32; 2] = [1, 6];
/// Fewer connections than this leave too little behind.
const CROWD: usize = 64;

/// Does so for ever.
pub(super) async fn keep_small(readiness: Readiness, proxy: Proxy) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !readiness.pending().is_empty() {
        tick.tick().await;
    }
    tick.tick().await;
    give_back().await;
    let (mut come, mut gone) = (Come::default(), Gone::default());
    loop {
        tick.tick().await;
        let active = proxy.active();
        if come.is_over(active) | gone.is_over(active) {
            give_back().await;
        }
    }
}

async fn give_back() {
    // Most threads get to that before the next time.
    call_in_spares();
    let done = spawn_blocking(|| {
        give_back_heap();
        let_go_of_code()
    });
    if let Ok(Err(error)) = done.await {
        tracing::debug!(%error, "code that is not needed any more stays in memory");
    }
}

/// Notices crowds that have come: handshakes take several times what is left of them.
#[derive(Debug, Default)]
struct Come {
    least: usize,
    before: usize,
}

impl Come {
    /// Whether many have come and no more do, another tick later, with so many connections there.
    fn is_over(&mut self, active: usize) -> bool {
        let still = active <= self.before + self.before / 16;
        self.before = active;
        self.least = self.least.min(active);
        let over = still && active - self.least >= CROWD.max(self.least / 2);
        if over {
            self.least = active;
        }
        over
    }
}

/// Notices crowds that have gone.
#[derive(Debug, Default)]
struct Gone {
    most: usize,
    /// Ticks since.
    since: Option<u32>,
}

impl Gone {
    /// Whether it is time to give memory back, another tick later, with so many connections left.
    fn is_over(&mut self, active: usize) -> bool {
        self.most = self.most.max(active);
        if self.most - active >= CROWD.max(self.most / 2) {
            (self.most, self.since) = (active, Some(0));
        }
        let Some(since) = &mut self.since else { return false };
        *since += 1;
        let due = AFTER.contains(since);
        if *since >= AFTER[1] {
            self.since = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crowd_needed_to_come_is_given_back_once() {
        let mut come = Come::default();
        let due = |come: &mut Come, ticks: &[usize]| -> Vec<bool> {
            ticks.iter().map(|active| come.is_over(*active)).collect()
        };
        assert_eq!(due(&mut come, &[0, 40, 63, 20, 60, 63]), [false; 6]);
        assert_eq!(due(&mut come, &[900, 2000, 2010, 2000, 2010]), [false, false, true, false, false]);
        // A few more are nothing to such a crowd; as many again are, and so is another one after it has gone.
        assert_eq!(due(&mut come, &[2500, 2500, 3300, 3300]), [false, false, false, true]);
        assert_eq!(due(&mut come, &[100, 100, 200, 200]), [false, false, false, true]);
    }

    #[test]
    fn memory_is_given_back_after_crowds_and_not_otherwise() {
        let mut gone = Gone::default();
        let due = |gone: &mut Gone, ticks: &[usize]| -> Vec<bool> {
            ticks.iter().map(|active| gone.is_over(*active)).collect()
        };
        assert_eq!(due(&mut gone, &[0, 40, 0, 63, 1, 2000, 1990, 1500]), [false; 8]);
        // A quarter of them is no crowd, most of them are.
        assert_eq!(due(&mut gone, &[256, 0, 0, 0, 0, 0]), [true, true, false, false, false, false]);
        assert_eq!(due(&mut gone, &[0, 0, 0, 0]), [true, false, false, false]);
    }
}
