//! When a certificate is renewed, when a failed attempt is made again, and who goes first.
//!
//! Owns the schedule of all identities of a node; knows no issuer and no timer: `now` and jitter are arguments.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use crate::model::SpiffeId;

/// When to renew a certificate that was issued at `issued` and ends at `not_after`: at half-life, moved by up to
/// ±12.5 % of the lifetime, so that identities issued together do not renew together. `jitter` is a random number in
/// 0.0..1.0.
///
/// `issued` is the time of the issue and not the certificate's not-before: issuers date that back by minutes, which for a
/// short-lived certificate would put its half-life into the past.
pub fn renew_at(issued: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(issued).unwrap_or_default();
    issued + lifetime.mul_f64(0.5 + (jitter.clamp(0.0, 1.0) - 0.5) * 0.25).max(MIN_INTERVAL)
}

/// The longest wait between two attempts to renew one identity.
pub const BACKOFF_CAP: Duration = Duration::from_secs(150);

/// The wait after the first failure, and the shortest there is.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// While the issuer gives no answer, one of those in want of it is asked for this often, however long their own waits are.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// An issuer that answers again has each identity's back-off cut short at most this often.
const HURRY_INTERVAL: Duration = Duration::from_secs(8);

/// No certificate is renewed sooner than this after its issue, however short its life.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A clock that goes back by less than this changes nothing in the schedule.
const CLOCK_STEP: Duration = Duration::from_secs(60);

/// How long to wait after the `failures`-th failure in a row: from half a second, doubled each time, ±20 %, at most
/// [`BACKOFF_CAP`]. `jitter` is a random number in 0.0..1.0.
pub fn backoff(failures: u32, jitter: f64) -> Duration {
    let base = FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(16));
    base.min(BACKOFF_CAP).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0)).min(BACKOFF_CAP)
}

/// Which identity asks its issuer when. At most `limit` attempts run at a time; of those that are due, identities that a
/// connection waits for go first, then those without a certificate, then renewals, soonest expiry first.
///
/// An issuer that gives no answer is asked for one identity every two seconds, for whichever goes first. Once it answers, be
/// it with a refusal, the others are asked for at once.
#[derive(Debug)]
pub struct Schedule {
    entries: HashMap<SpiffeId, Entry>,
    /// Attempts under way, also those of identities forgotten meanwhile.
    running: HashSet<SpiffeId>,
    limit: usize,
    /// Since the issuer gave no answer, or was probed.
    silent: Option<SystemTime>,
}

#[derive(Debug)]
struct Entry {
    /// When the next attempt may start.
    due: SystemTime,
    /// When `due` was set, to notice a clock that was put back.
    set: SystemTime,
    /// End of the certificate in use.
    expires: Option<SystemTime>,
    /// Failures in a row.
    failures: u32,
    /// The last attempt failed.
    failing: bool,
    /// When an answering issuer cut the back-off short.
    hurried: Option<SystemTime>,
    /// Something new came while an attempt was under way, which may have missed it.
    again: bool,
    /// A connection waits.
    demanded: bool,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The issuer was not to be heard, or had nothing but what is long over.
    Silence,
    /// It answered, or the failure is not its own.
    Answer,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask the issuer for this identity; report the outcome with [`Schedule::issued`] or [`Schedule::failed`].
    Start(SpiffeId),
    /// Nothing until this time, until an attempt ends, or until the identities change.
    Wait(Option<SystemTime>),
}

/// How an identity stands in the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// An attempt is under way.
    Running,
    /// The next attempt starts at this time, or as soon as there is room after it.
    Due(SystemTime),
}

impl Schedule {
    /// An empty schedule that runs at most `limit` attempts at a time.
    pub fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), running: HashSet::new(), limit: limit.max(1), silent: None }
    }

    /// Makes `wanted` the identities to keep certificates for: new ones are due at once, the others are forgotten.
    pub fn retain(&mut self, wanted: &HashSet<SpiffeId>, now: SystemTime) {
        self.entries.retain(|id, _| wanted.contains(id));
        for id in wanted {
            self.entries.entry(id.clone()).or_insert_with(|| Entry::new(now, now, None));
        }
    }

    /// A connection waits for `id`: it goes before all others once it is due. Backoff is kept, so that connections
    /// cannot make an agent hammer an issuer that is down. `None` if the identity is not scheduled.
    pub fn demand(&mut self, id: &SpiffeId) -> Option<Progress> {
        self.entries.get_mut(id)?.demanded = true;
        self.progress(id)
    }

    /// Makes the next attempt for `id` due at once, unless one failed and waits for its backoff: its certificate is of
    /// no use any more.
    pub fn expedite(&mut self, id: &SpiffeId, now: SystemTime) {
        if let Some(entry) = self.entries.get_mut(id)
            && entry.failures == 0
        {
            entry.due_by(now);
        }
    }

    /// There is something new for `id` at its issuer: the next attempt is due at once, whatever has failed before, and after
    /// one that is under way.
    pub fn news(&mut self, id: &SpiffeId, now: SystemTime) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.again |= self.running.contains(id);
            entry.due_by(now);
        }
    }

    /// How `id` stands; `None` if it is not scheduled.
    pub fn progress(&self, id: &SpiffeId) -> Option<Progress> {
        let entry = self.entries.get(id)?;
        Some(if self.running.contains(id) { Progress::Running } else { Progress::Due(entry.due) })
    }

    /// The next thing to do at `now`. Call it again until it says [`Next::Wait`].
    pub fn next(&mut self, now: SystemTime) -> Next {
        let idle = || self.entries.iter().filter(|(id, _)| !self.running.contains(*id));
        if self.running.len() >= self.limit {
            return Next::Wait(None);
        }
        match idle().filter(|(_, entry)| entry.is_due(now)).min_by_key(|(_, entry)| entry.rank(now)) {
            Some((id, _)) => {
                let id = id.clone();
                self.running.insert(id.clone());
                Next::Start(id)
            }
            None => self.probe(now),
        }
    }

    /// Whom to ask for to learn whether a silent issuer is back, before anybody is due.
    fn probe(&mut self, now: SystemTime) -> Next {
        let idle = || self.entries.iter().filter(|(id, _)| !self.running.contains(*id));
        let due = idle().map(|(_, entry)| entry.due).min();
        let first = idle().filter(|(_, entry)| entry.failing).min_by_key(|(_, entry)| entry.rank(now));
        let (Some(since), Some((id, _))) = (self.silent, first) else { return Next::Wait(due) };
        let at = since + PROBE_INTERVAL;
        if now < at && now + CLOCK_STEP >= since {
            return Next::Wait(due.map(|due| due.min(at)));
        }
        let id = id.clone();
        self.silent = Some(now);
        self.running.insert(id.clone());
        Next::Start(id)
    }

    /// The issuer has answered. If it had been silent, all that wait for it since are asked for at once.
    fn answered(&mut self, now: SystemTime) {
        if self.silent.take().is_none() {
            return;
        }
        let lately = |at: SystemTime| now.duration_since(at).is_ok_and(|ago| ago < HURRY_INTERVAL);
        let failing = self.entries.values_mut().filter(|entry| entry.failing);
        for entry in failing.filter(|entry| !entry.hurried.is_some_and(lately)) {
            (entry.failures, entry.hurried) = (0, Some(now));
            entry.due_by(now);
        }
    }

    /// An attempt gave a certificate that ends at `not_after`. Returns when it will be renewed; `None` if the identity was
    /// forgotten meanwhile.
    pub fn issued(
        &mut self,
        id: &SpiffeId,
        now: SystemTime,
        not_after: SystemTime,
        jitter: f64,
    ) -> Option<SystemTime> {
        self.running.remove(id);
        self.answered(now);
        let entry = self.entries.get_mut(id)?;
        let due = if entry.again { now } else { renew_at(now, not_after, jitter) };
        *entry = Entry::new(due, now, Some(not_after));
        Some(due)
    }

    /// An attempt failed. Returns when the next one will be made; `None` if the identity was forgotten meanwhile. While a
    /// certificate is good still, that is after a quarter of what is left of it at the latest: an issuer that is back in
    /// time is asked in time, however short the certificate's life.
    pub fn failed(
        &mut self,
        id: &SpiffeId,
        now: SystemTime,
        failure: Failure,
        jitter: f64,
    ) -> Option<SystemTime> {
        self.running.remove(id);
        match failure {
            Failure::Silence => self.silent = Some(now),
            Failure::Answer => self.answered(now),
        }
        let entry = self.entries.get_mut(id)?;
        let wait = backoff(entry.failures.saturating_add(1), jitter);
        let left = entry.expires.and_then(|end| end.duration_since(now).ok()).filter(|left| !left.is_zero());
        let hurried = left.map_or(wait, |left| wait.min((left / 4).max(FIRST_BACKOFF)));
        // Attempts that come sooner because the end is near must not make those after it come later.
        if hurried == wait {
            entry.failures = entry.failures.saturating_add(1);
        }
        let again = std::mem::take(&mut entry.again);
        (entry.due, entry.set) = (if again { now } else { now + hurried }, now);
        entry.failing = true;
        entry.demanded = false;
        Some(entry.due)
    }
}

impl Entry {
    fn new(due: SystemTime, set: SystemTime, expires: Option<SystemTime>) -> Self {
        Self { due, set, expires, failures: 0, failing: false, hurried: None, again: false, demanded: false }
    }

    /// Makes it due at `now`, if it is not sooner.
    fn due_by(&mut self, now: SystemTime) {
        (self.due, self.set) = (self.due.min(now), now);
    }

    fn is_due(&self, now: SystemTime) -> bool {
        now >= self.due || now + CLOCK_STEP < self.set
    }

    fn rank(&self, now: SystemTime) -> (bool, bool, Option<SystemTime>, SystemTime) {
        let valid = self.expires.filter(|expires| *expires > now);
        (!self.demanded, valid.is_some(), valid, self.due)
    }
}

#[cfg(test)]
mod tests;
