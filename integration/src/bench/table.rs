//! A run as a table of text: a row for each figure of each load, a column for each data path.

use std::fmt::Write as _;

use super::results::{PLAINTEXT, Run, Series, Spread, shown};

const NAME: usize = 52;
const COLUMN: usize = 19;

/// The table, and what failed.
pub(super) fn told(run: &Run) -> String {
    let mut text = format!("  {:<NAME$}", "medians (and of plaintext)");
    for path in &run.paths {
        // Writing into a String does not fail.
        let _ = write!(text, "{:>COLUMN$}", path.name);
    }
    text.push('\n');
    for load in &run.loads {
        for figure in run.figures(&load.name) {
            let name = format!("{}, {}, {}", load.name, figure.label, figure.unit);
            let _ = write!(text, "  {name:<NAME$}");
            for path in &run.paths {
                let series = run.series(&load.name, &path.name, &figure.figure);
                let value = series.map_or_else(|| "–".to_owned(), |series| cell(run, series));
                let _ = write!(text, "{value:>COLUMN$}");
            }
            text.push('\n');
        }
    }
    for failure in &run.failures {
        let _ = writeln!(
            text,
            "FAILED: {} over {}, round {}: {}",
            failure.load, failure.path, failure.round, failure.error
        );
    }
    text
}

/// The median, with its share of plaintext's where there is one.
pub(super) fn cell(run: &Run, series: &Series) -> String {
    let value = shown(series.spread().median);
    match run.of_plaintext(series) {
        Some(shares) if series.path != PLAINTEXT => {
            format!("{value} ({}×)", shown(Spread::of(&shares).median))
        }
        _ => value,
    }
}
