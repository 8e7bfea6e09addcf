//! Two runs held against each other: what became better or worse beyond noise.
//!
//! Figures that plaintext has too are compared as shares of plaintext in the same round: that takes out how fast the machine
//! was. A difference counts if it is of 2 % at least, and the medians lie outside of each other's spread, which noise alone does
//! in one of twenty comparisons of five rounds. With three or four rounds the spreads may not touch at all, and with fewer
//! nothing is said.

use std::fmt::Write as _;

use super::{
    figures::Better,
    results::{PLAINTEXT, Run, Series, Spread, shown},
};

/// Less is never called a difference.
const LEAST: f64 = 0.02;
/// Rounds from which on medians outside of each other's spread suffice.
const MANY_ROUNDS: usize = 5;
const FEW_ROUNDS: usize = 3;

/// What came of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Same,
    Unsure,
}

/// One figure in both runs.
struct Change<'a> {
    new: &'a Series,
    /// Of the values, or of their shares of plaintext.
    spreads: [Spread; 2],
    is_share: bool,
    verdict: Verdict,
}

/// What changed from `old` to `new`, in lines.
pub fn told(old: &Run, new: &Run) -> String {
    let changes: Vec<Change<'_>> = new.results.iter().filter_map(|series| change(old, new, series)).collect();
    let mut text = format!("from the run of {} to that of {}:\n", old.started, new.started);
    for (verdict, heading) in [(Verdict::Worse, "worse"), (Verdict::Better, "better")] {
        let found = changes.iter().filter(|one| one.verdict == verdict && one.new.path != PLAINTEXT);
        text += &list(heading, found);
    }
    let drifted = changes
        .iter()
        .filter(|one| one.new.path == PLAINTEXT && [Verdict::Better, Verdict::Worse].contains(&one.verdict));
    text +=
        &list("plaintext, that is the machine itself, differs (shares of it are compared above)", drifted);
    let count = |verdict| changes.iter().filter(|one| one.verdict == verdict).count();
    let alone = new.results.len() - changes.len();
    // Writing into a String does not fail.
    let _ = writeln!(
        text,
        "{} figures within noise, {} with too few rounds to tell (three at least), {alone} that only the newer run has\n\
         (a difference is one of 2 % at least with medians outside of each other's spread; spreads that do not touch, where there \
         are fewer than five rounds)",
        count(Verdict::Same),
        count(Verdict::Unsure),
    );
    let machine = |run: &Run| {
        format!("{} × {}, kernel {}", run.machine.processors, run.machine.processor, run.machine.kernel)
    };
    if machine(old) != machine(new) {
        let _ = writeln!(text, "the machines differ: {} and {}", machine(old), machine(new));
    }
    text
}

fn list<'a>(heading: &str, changes: impl Iterator<Item = &'a Change<'a>>) -> String {
    let lines: String = changes.map(Change::told).collect();
    if lines.is_empty() { format!("{heading}: nothing\n") } else { format!("{heading}:\n{lines}") }
}

fn change<'a>(old: &Run, new: &Run, series: &'a Series) -> Option<Change<'a>> {
    let before = old.series(&series.load, &series.path, &series.figure)?;
    let shares =
        if series.path == PLAINTEXT { None } else { old.of_plaintext(before).zip(new.of_plaintext(series)) };
    let is_share = shares.is_some();
    let values = |series: &Series| series.rounds.values().copied().collect::<Vec<_>>();
    let (before, after) = shares.unwrap_or_else(|| (values(before), values(series)));
    let verdict = judge(&before, &after, series.better);
    Some(Change { new: series, spreads: [Spread::of(&before), Spread::of(&after)], is_share, verdict })
}

fn judge(before: &[f64], after: &[f64], better: Better) -> Verdict {
    let (old, new) = (Spread::of(before), Spread::of(after));
    let rounds = before.len().min(after.len());
    if rounds < FEW_ROUNDS {
        return Verdict::Unsure;
    }
    let apart = match rounds >= MANY_ROUNDS {
        true => !old.has(new.median) && !new.has(old.median),
        false => old.high < new.low || new.high < old.low,
    };
    if !apart || (new.median - old.median).abs() < LEAST * old.median.abs() {
        return Verdict::Same;
    }
    if (new.median > old.median) == (better == Better::More) { Verdict::Better } else { Verdict::Worse }
}

impl Change<'_> {
    fn told(&self) -> String {
        let [old, new] = self.spreads;
        let Series { load, path, label, unit, .. } = self.new;
        let unit = if self.is_share { "of plaintext" } else { unit };
        let percent = 100.0 * (new.median / old.median - 1.0);
        let value = |spread: Spread| {
            format!("{} ({}–{})", shown(spread.median), shown(spread.low), shown(spread.high))
        };
        let name = format!("{path}, {load}, {label}");
        format!("  {name:<48} {:>26} → {:<26} {unit} {percent:+.1} %\n", value(old), value(new))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            figures::{self, Figure},
            results::Machine,
        },
        *,
    };

    const OLD: [f64; 5] = [10.0, 11.0, 12.0, 13.0, 14.0];

    #[test]
    fn a_difference_is_one_beyond_noise() {
        let judged = |after: &[f64]| judge(&OLD, after, Better::More);
        assert_eq!(judged(&OLD), Verdict::Same);
        assert_eq!(judged(&[12.0, 13.0, 14.0, 15.0, 16.0]), Verdict::Same);
        assert_eq!(judged(&[13.0, 13.5, 15.0, 15.5, 16.0]), Verdict::Better);
        assert_eq!(judged(&[5.0, 6.0, 7.0, 8.0, 11.0]), Verdict::Worse);
        assert_eq!(judge(&OLD, &[5.0, 6.0, 7.0, 8.0, 11.0], Better::Less), Verdict::Better);
    }

    #[test]
    fn few_rounds_need_more_of_a_difference() {
        assert_eq!(judge(&OLD, &[13.0, 15.0, 16.0], Better::More), Verdict::Same);
        assert_eq!(judge(&OLD, &[14.5, 15.0, 16.0], Better::More), Verdict::Better);
        assert_eq!(judge(&OLD, &[100.0, 100.0], Better::More), Verdict::Unsure);
    }

    #[test]
    fn what_is_steady_but_small_is_no_difference() {
        assert_eq!(judge(&[100.0; 5], &[101.0; 5], Better::More), Verdict::Same);
        assert_eq!(judge(&[100.0; 5], &[103.0; 5], Better::More), Verdict::Better);
    }

    #[test]
    fn a_faster_machine_makes_nothing_better() {
        let run = |speed: f64, ambit: f64| {
            let mut run = Run::new("now".to_owned(), Machine::default(), 5, 1);
            let mut add = |path: &str, figure: &Figure, round: u32, value| {
                run.add("bulk-1-up", path, figure, round, value)
            };
            for round in 1..=5 {
                let wobble = 1.0 + f64::from(round) / 1_000.0;
                add(PLAINTEXT, &figures::GBPS, round, speed * wobble);
                add("ambit", &figures::GBPS, round, speed * ambit);
                add("ambit", &figures::CPU_PER_GIGABYTE, round, 1.0);
            }
            run
        };
        let text = told(&run(10.0, 0.6), &run(20.0, 0.6));
        assert!(text.contains("worse: nothing\nbetter: nothing\nplaintext, that is the machine"), "{text}");
        let text = told(&run(10.0, 0.6), &run(20.0, 0.5));
        assert!(text.contains("worse:\n  ambit, bulk-1-up, throughput"), "{text}");
        assert!(text.contains("-16.7 %"), "{text}");
    }
}
