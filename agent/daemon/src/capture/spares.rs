//! Sockets for dials in clients' names, ready but for their addresses. The way into a pod's network namespace and back costs more
//! than most of what is set on a socket there, so that several are made at a time while many are wanted.
//!
//! Promises that a pod keeps few of them, and none for long once nobody wants any.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use socket2::Socket;

/// How many are made at a time at most.
const MOST: usize = 8;
/// Many are wanted if the last were made so lately.
const BUSY: Duration = Duration::from_millis(20);
/// How long after the last were made the rest is kept.
const KEPT: Duration = Duration::from_secs(1);

/// Those of one pod, by address family.
#[derive(Debug)]
pub(super) struct Spares<S = Socket>([Mutex<Kept<S>>; 2]);

#[derive(Debug)]
struct Kept<S> {
    sockets: Vec<S>,
    made: Option<Instant>,
}

impl<S> Default for Spares<S> {
    fn default() -> Self {
        Self([(); 2].map(|()| Mutex::new(Kept { sockets: Vec::new(), made: None })))
    }
}

impl<S> Spares<S> {
    /// One of those that are left, or one of as many new ones as `make` is told.
    pub(super) fn take(
        &self,
        v6: bool,
        now: Instant,
        make: impl FnOnce(usize) -> io::Result<Vec<S>>,
    ) -> io::Result<S> {
        let busy = {
            let mut kept = self.kept(v6);
            if let Some(spare) = kept.sockets.pop() {
                return Ok(spare);
            }
            let last = kept.made.replace(now);
            last.is_some_and(|last| now.saturating_duration_since(last) < BUSY)
        };
        let mut made = make(if busy { MOST } else { 1 })?;
        let taken = made.pop().ok_or(io::ErrorKind::NotFound)?;
        let mut kept = self.kept(v6);
        // Others may have made some meanwhile.
        made.truncate(MOST.saturating_sub(kept.sockets.len()));
        kept.sockets.append(&mut made);
        Ok(taken)
    }

    /// Lets go of what nobody wanted lately.
    pub(super) fn tidy(&self, now: Instant) {
        for v6 in [false, true] {
            let mut kept = self.kept(v6);
            if kept.made.is_some_and(|made| now.saturating_duration_since(made) >= KEPT) {
                kept.sockets = Vec::new();
            }
        }
    }

    fn kept(&self, v6: bool) -> MutexGuard<'_, Kept<S>> {
        // Each critical section is a step of a list: a panic cannot leave it half changed.
        self.0[usize::from(v6)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_made_only_while_many_are_wanted_and_none_is_kept_for_long() {
        let spares = Spares::default();
        let start = Instant::now();
        let take = |v6, at: Duration| {
            let mut made = 0;
            let taken = spares.take(v6, start + at, |count| {
                made = count;
                Ok(vec![(); count])
            });
            taken.unwrap();
            made
        };
        let at = Duration::from_millis;
        // Alone, then close behind another: that has brought some for those that follow.
        assert_eq!([0, 5, 6, 7].map(|millis| take(false, at(millis))), [1, MOST, 0, 0]);
        assert_eq!(take(true, at(8)), 1, "the other family has its own");
        spares.tidy(start + at(900));
        assert_eq!(take(false, at(901)), 0);
        spares.tidy(start + at(5) + KEPT);
        assert_eq!(take(false, at(2000)), 1);
    }

    #[test]
    fn what_cannot_be_made_is_said_and_what_others_made_meanwhile_is_not_added_to() {
        let spares = Spares::default();
        let now = Instant::now();
        let failed = spares.take(false, now, |_| Err(io::ErrorKind::OutOfMemory.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        let taken = spares.take(false, now, |count| {
            // Another is through with the same before.
            spares.take(false, now, |count| Ok(vec![1; count]))?;
            Ok(vec![2; count])
        });
        assert_eq!(taken.unwrap(), 2);
        assert_eq!(spares.kept(false).sockets.len(), MOST);
    }
}
