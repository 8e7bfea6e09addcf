//! Runs tests, from several threads if need be, and tells of each as it ends.
//!
//! Ours, not the crate libtest-mimic: that has no second try, no figures beside a name, and neither order nor a world that tests
//! share.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Result, bail};

use crate::console::Console;

/// A run of a suite.
#[derive(Debug)]
pub struct Report {
    console: Console,
    /// Whether a test that fails is tried once more.
    again: bool,
    ended: Mutex<Ended>,
}

/// Tests that have ended.
#[derive(Debug, Default)]
struct Ended {
    passed: usize,
    unsteady: Vec<&'static str>,
    failed: Vec<&'static str>,
}

/// Does every one of `tasks` on one of so many threads. `worker` makes what does them on one of these, numbered from 1.
pub fn side_by_side<T, W: FnMut(T)>(
    tasks: impl Iterator<Item = T> + Send,
    lanes: usize,
    worker: impl Fn(usize) -> W + Sync,
) {
    let queue = Mutex::new(tasks);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for lane in 1..=lanes {
            let (next, worker) = (&next, &worker);
            scope.spawn(move || {
                let mut work = worker(lane);
                while let Some(task) = next() {
                    work(task);
                }
            });
        }
    });
}

impl Report {
    /// A run that is told on `console`. With `again`, a test that fails is tried once more: it counts if it holds then, and
    /// is told of as unsteady.
    pub fn new(console: Console, again: bool) -> Self {
        Self { console, again, ended: Mutex::default() }
    }

    /// Runs a test, which is to show what `about` says; `perform` yields the figures that it wants shown.
    pub fn test(&self, name: &'static str, about: &str, mut perform: impl FnMut() -> Result<Vec<String>>) {
        for last in if self.again { [false, true].as_slice() } else { &[true] } {
            let start = Instant::now();
            let done = perform();
            let took = start.elapsed().as_secs_f64();
            let (style, word) = if done.is_ok() { ("32", "ok    ") } else { ("31", "FAILED") };
            // The lines of one test stay together.
            let mut ended = self.ended();
            self.console.line(format_args!("  {name:<58} {} {took:6.1} s", self.console.paint(style, word)));
            match done {
                Ok(notes) => {
                    ended.passed += 1;
                    notes.iter().for_each(|note| self.console.line(format_args!("      {note}")));
                    return;
                }
                Err(error) => {
                    self.console.line(format_args!("      shows that: {about}"));
                    format!("{error:#}")
                        .lines()
                        .for_each(|line| self.console.line(format_args!("      {line}")));
                    let list = if *last { &mut ended.failed } else { &mut ended.unsteady };
                    list.push(name);
                }
            }
        }
    }

    /// Tells how the run went, with the tests that `before` it had passed; a failure is an error, and so is having run none.
    pub fn conclude(self, before: usize) -> Result<()> {
        let console = self.console;
        let Ended { passed, unsteady, failed } = std::mem::take(&mut *self.ended());
        let unsteady: Vec<_> = unsteady.into_iter().filter(|name| !failed.contains(name)).collect();
        for (what, names) in [("failed", &failed), ("held only when tried again", &unsteady)] {
            if !names.is_empty() {
                console.line(format_args!("\n{what}:\n  {}", names.join("\n  ")));
            }
        }
        console.line(format_args!("\n{} passed, {} failed", before + passed, failed.len()));
        match (passed, failed.len()) {
            (0, 0) => bail!("no end-to-end test has such a name"),
            (_, 0) => Ok(()),
            _ => bail!("end-to-end tests failed"),
        }
    }

    fn ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_try_counts_only_where_it_was_asked_for() {
        for (again, tries, good) in [(false, 1, false), (true, 2, true)] {
            let report = Report::new(Console::silent(), again);
            let mut tried = 0;
            report.test("topic::holds_later", "the second try", || {
                tried += 1;
                if tried == 2 { Ok(Vec::new()) } else { bail!("not yet") }
            });
            assert_eq!((tried, report.conclude(0).is_ok()), (tries, good));
        }
    }

    #[test]
    fn a_run_without_tests_is_an_error() {
        assert!(Report::new(Console::silent(), true).conclude(7).is_err());
    }
}
