//! Whether so many streams speak at a time that a packet for several of their messages is worth a detour.

use std::time::{Duration, Instant};

/// Messages that are judged together.
const MESSAGES: u32 = 64;
/// How often another stream than the one before has to speak among these.
const TURNS: u32 = 32;
/// How long they may take: 8,000 messages a second.
const WITHIN: Duration = Duration::from_millis(8);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Density {
    dense: bool,
    /// The stream that spoke last.
    last: u32,
    messages: u32,
    turns: u32,
    since: Option<Instant>,
}

impl Density {
    /// Counts a message of a stream; answers how things stand.
    pub(super) fn count(&mut self, stream: u32, now: impl FnOnce() -> Instant) -> bool {
        self.messages += 1;
        if stream != self.last {
            self.last = stream;
            self.turns += 1;
        }
        if self.messages >= MESSAGES {
            let now = now();
            let soon = self.since.is_some_and(|since| now - since <= WITHIN);
            self.dense = soon && self.turns >= TURNS;
            (self.messages, self.turns, self.since) = (0, 0, Some(now));
        }
        self.dense
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How things stand after a second of so many messages, of `streams` in turn.
    fn after(messages: u32, streams: u32) -> bool {
        let (mut density, begin) = (Density::default(), Instant::now());
        let mut dense = false;
        for message in 0..messages {
            let now = begin + Duration::from_secs(1) * message / messages;
            dense = density.count(message % streams, || now);
        }
        dense
    }

    #[test]
    fn it_takes_several_streams_that_speak_often() {
        assert!(after(20_000, 8));
        assert!(!after(20_000, 1), "one of many speaks");
        assert!(!after(4_000, 8), "many speak seldom");
        assert!(!after(63, 8), "too few to tell");
    }

    #[test]
    fn it_ends_when_only_one_goes_on() {
        let (mut density, now) = (Density::default(), Instant::now());
        let dense = (0..256).map(|message| density.count(message % 8, || now)).last();
        assert_eq!(dense, Some(true));
        let dense = (0..128).map(|_| density.count(1, || now)).last();
        assert_eq!(dense, Some(false));
    }
}
