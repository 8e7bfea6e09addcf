//! The results of a run: what was measured, in which round, of which data path. JSON is their lasting form.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figures::{Better, Figure};

/// The version of the JSON; another one cannot be compared.
const VERSION: u32 = 1;

/// The name of the data path that others are held against.
pub(super) const PLAINTEXT: &str = "plaintext";

/// A run, over or interrupted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Of this format.
    pub version: u32,
    /// When it began, UTC.
    pub started: String,
    /// Where.
    pub machine: Machine,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Seconds that a load lasted.
    pub seconds: u32,
    /// It was told to stop before its end.
    pub interrupted: bool,
    /// The data paths, in the order in which they are shown.
    pub paths: Vec<About>,
    /// The loads, likewise.
    pub loads: Vec<About>,
    /// What was measured.
    pub results: Vec<Series>,
    /// Loads that a data path did not carry.
    pub failures: Vec<Failure>,
}

/// The machine of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's model.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Of all, in MiB.
    pub memory_mib: u64,
    /// TCP's congestion control in the pods and nodes of the run.
    pub congestion_control: String,
    /// How many processes were running or ready to, on average of the minute before.
    pub load_before: f64,
}

/// A name and what it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The name.
    pub name: String,
    /// What it means.
    pub about: String,
}

/// One figure of one load on one data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// The load.
    pub load: String,
    /// The data path.
    pub path: String,
    /// Which figure.
    pub figure: String,
    /// For people.
    pub label: String,
    /// Of the values.
    pub unit: String,
    /// Which values are the better ones.
    pub better: Better,
    /// The median of all rounds. Written for readers of the JSON.
    pub median: f64,
    /// The value of each round.
    pub rounds: BTreeMap<u32, f64>,
}

/// A load that a data path did not carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The load.
    pub load: String,
    /// The data path.
    pub path: String,
    /// In which round.
    pub round: u32,
    /// Why.
    pub error: String,
}

/// Values by their middle and their ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The least.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The greatest.
    pub high: f64,
}

impl Run {
    /// A run that has measured nothing yet.
    pub fn new(started: String, machine: Machine, rounds: u32, seconds: u32) -> Self {
        Self {
            version: VERSION,
            started,
            machine,
            rounds,
            seconds,
            interrupted: false,
            paths: Vec::new(),
            loads: Vec::new(),
            results: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Reads what [`Run::write`] or `--json` wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let run: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of `cargo xtask bench --json`", file.display()))?;
        ensure!(
            run.version == VERSION,
            "{} has version {} of the format, and this program reads {VERSION}",
            file.display(),
            run.version
        );
        Ok(run)
    }

    /// Adds the value of a round.
    pub(super) fn add(&mut self, load: &str, path: &str, figure: &Figure, round: u32, value: f64) {
        let found = self
            .results
            .iter()
            .position(|one| one.load == load && one.path == path && one.figure == figure.key);
        let series = match found {
            Some(found) => &mut self.results[found],
            None => {
                self.results.push(Series {
                    load: load.to_owned(),
                    path: path.to_owned(),
                    figure: figure.key.to_owned(),
                    label: figure.label.to_owned(),
                    unit: figure.unit.to_owned(),
                    better: figure.better,
                    median: value,
                    rounds: BTreeMap::new(),
                });
                let last = self.results.len() - 1;
                &mut self.results[last]
            }
        };
        series.rounds.insert(round, value);
        series.median = series.spread().median;
    }

    /// The series of this load, data path and figure.
    pub fn series(&self, load: &str, path: &str, figure: &str) -> Option<&Series> {
        self.results.iter().find(|one| one.load == load && one.path == path && one.figure == figure)
    }

    /// The figures of a load that any data path has, in the order in which they were measured.
    pub fn figures(&self, load: &str) -> Vec<&Series> {
        let mut found: Vec<&Series> = Vec::new();
        for series in self.results.iter().filter(|series| series.load == load) {
            if !found.iter().any(|one| one.figure == series.figure) {
                found.push(series);
            }
        }
        found
    }

    /// The values of a series as shares of plaintext's in the same round, where plaintext has any.
    pub fn of_plaintext(&self, series: &Series) -> Option<Vec<f64>> {
        let plaintext = self.series(&series.load, PLAINTEXT, &series.figure)?;
        let shares: Vec<f64> = series
            .rounds
            .iter()
            .filter_map(|(round, value)| {
                Some(value / plaintext.rounds.get(round).filter(|plain| **plain > 0.0)?)
            })
            .collect();
        (!shares.is_empty()).then_some(shares)
    }
}

impl Series {
    /// Of all rounds.
    pub fn spread(&self) -> Spread {
        Spread::of(&self.rounds.values().copied().collect::<Vec<_>>())
    }
}

impl Spread {
    /// Of these values; noughts of none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => return Self { low: 0.0, median: 0.0, high: 0.0 },
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Self { low: sorted[0], median, high: sorted[sorted.len() - 1] }
    }

    /// Whether this value is among them.
    pub fn has(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// A value with three significant digits or all before the point, thousands apart.
pub(super) fn shown(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), ""), |(whole, _)| (whole, &text[whole.len()..]));
    let mut apart = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let behind = whole.len() - index;
        if index > 0 && behind % 3 == 0 && digit.is_ascii_digit() && !apart.ends_with('-') {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart + rest
}

#[cfg(test)]
mod tests {
    use super::{super::figures, *};

    #[test]
    fn a_spread_has_its_median_in_the_middle() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { low: 1.0, median: 2.0, high: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0]).median, 2.5);
        assert_eq!(Spread::of(&[]).median, 0.0);
    }

    #[test]
    fn shares_are_of_plaintext_in_the_same_round() {
        let mut run = Run::new(String::new(), Machine::default(), 3, 1);
        for (round, plain, ambit) in [(1, 10.0, 5.0), (2, 20.0, 12.0)] {
            run.add("bulk-1-up", PLAINTEXT, &figures::GBPS, round, plain);
            run.add("bulk-1-up", "ambit", &figures::GBPS, round, ambit);
        }
        run.add("bulk-1-up", "ambit", &figures::GBPS, 3, 1.0);
        let series = run.series("bulk-1-up", "ambit", "gbps").unwrap();
        assert_eq!(run.of_plaintext(series), Some(vec![0.5, 0.6]));
        assert_eq!((series.median, run.figures("bulk-1-up").len()), (5.0, 1));
        run.add("bulk-1-up", "ambit", &figures::CPU_PER_GIGABYTE, 1, 1.0);
        let processor = run.series("bulk-1-up", "ambit", "cpu_s_per_gigabyte").unwrap();
        assert_eq!(run.of_plaintext(processor), None);
        assert_eq!(run.figures("bulk-1-up").len(), 2);
    }

    #[test]
    fn values_are_shown_as_people_read_them() {
        let cases = [
            (0.12345, "0.123"),
            (1.2345, "1.23"),
            (12.345, "12.3"),
            (123.45, "123"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, text) in cases {
            assert_eq!(shown(value), text);
        }
        assert_eq!((shown(-1234.0), shown(-123.0)), ("-1,234".to_owned(), "-123".to_owned()));
    }
}
