//! How what is established gets to end by itself when its agent does.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Signals;

/// How often is looked whether all has ended.
const POLL: Duration = Duration::from_millis(50);
/// How long an agent that has handed over stays at least: connections may be on their way through the handshake to its
/// listeners.
pub(super) const LINGER: Duration = Duration::from_secs(3);

/// Waits until `left` says that nothing is, but no longer than `limit`.
pub(crate) async fn drained(limit: Duration, left: impl Fn() -> usize) {
    let nothing_left = async {
        while left() > 0 {
            sleep(POLL).await;
        }
    };
    // What has not ended by then is cut.
    let _: Result<(), _> = timeout(limit, nothing_left).await;
}

/// The last part of an agent's life after another has taken over from it: lasts until a signal comes and `active` then
/// says zero or the time to `drain` is over, or a second signal. Without a signal it lasts for the time to drain. An agent
/// that got its signal before it was relieved says when: `stopped`.
pub(crate) async fn end_superseded(
    signals: &mut Signals,
    drain: Duration,
    stopped: Option<Instant>,
    active: impl Fn() -> usize,
) {
    let since = Instant::now();
    let stopped = match stopped {
        Some(stopped) => stopped,
        None => {
            // A supervisor that starts the new agent before it stops the old one would start this one again if it ended
            // before it was told to.
            tokio::select! {
                () = signals.next() => {}
                () = sleep(drain.max(LINGER)) => return,
            }
            Instant::now()
        }
    };
    let left = (stopped + drain).saturating_duration_since(Instant::now());
    let settled = async {
        sleep((since + LINGER).saturating_duration_since(Instant::now()).min(left)).await;
        drained(left, active).await;
    };
    tokio::select! {
        () = settled => {}
        () = signals.next() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_ends_with_the_last_or_with_the_limit() {
        let (started, left) = (Instant::now(), Cell::new(3));
        drained(Duration::from_secs(10), || {
            left.set(left.get() - 1);
            left.get()
        })
        .await;
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        let started = Instant::now();
        drained(Duration::from_secs(10), || 1).await;
        let waited = started.elapsed();
        assert!((10..11).contains(&waited.as_secs()), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_relieved_agent_stays_for_connections_on_their_way_and_then_as_long_as_it_may() {
        let drain = Duration::from_secs(25);
        for (stopped, active, lasts) in [(false, 0, 25), (false, 1, 25), (true, 0, 3), (true, 1, 25 + 3)] {
            let mut signals = Signals::listen().unwrap();
            let started = Instant::now();
            let stopped = stopped.then_some(started);
            end_superseded(&mut signals, drain, stopped, || active).await;
            let waited = started.elapsed();
            assert_eq!(waited.as_secs(), lasts, "stopped {stopped:?}, active {active}: {waited:?}");
        }
    }
}
