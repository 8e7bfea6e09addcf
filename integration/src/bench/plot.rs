//! One figure of one load as a drawing: a bar for each data path, the spread over it, and a dot for each round.

use std::fmt::Write as _;

use super::{
    html::escaped,
    results::{Run, Series},
    table,
};

const WIDTH: f64 = 440.0;
const NAMES: f64 = 88.0;
const VALUES: f64 = 112.0;
const ROW: f64 = 24.0;

/// An inline SVG, coloured by the report's style sheet: `p0`, `p1`, … are the data paths.
pub(super) fn bars(run: &Run, all: &[(usize, &Series)]) -> String {
    let most = all.iter().map(|(_, series)| series.spread().high).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - NAMES - VALUES) / most } else { 0.0 };
    let height = ROW * all.len() as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (row, (path, series)) in all.iter().enumerate() {
        let top = ROW * row as f64;
        let middle = top + ROW / 2.0;
        let spread = series.spread();
        let at = |value: f64| NAMES + value * scale;
        let (bar, low, high) = (spread.median * scale, at(spread.low), at(spread.high));
        // Writing into a String does not fail.
        let _ = write!(
            svg,
            "<text class=\"name\" x=\"{x}\" y=\"{y}\">{name}</text>\
             <rect class=\"p{path}\" x=\"{NAMES}\" y=\"{bar_top}\" width=\"{bar:.1}\" height=\"{thick}\" rx=\"2\"/>\
             <path class=\"spread\" d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {up}V{down}M{high:.1} {up}V{down}\"/>",
            x = NAMES - 8.0,
            y = middle + 4.0,
            name = escaped(&series.path),
            bar_top = top + 4.0,
            thick = ROW - 8.0,
            up = middle - 4.0,
            down = middle + 4.0,
        );
        for (round, value) in &series.rounds {
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"1.8\"><title>round {round}: {value}</title></circle>",
                at(*value)
            );
        }
        let _ = write!(
            svg,
            "<text class=\"value\" x=\"{:.1}\" y=\"{}\">{}</text>",
            high.max(at(spread.median)) + 8.0,
            middle + 4.0,
            escaped(&table::cell(run, series))
        );
    }
    svg + "</svg>"
}
