//! Metrics as text, in the two formats that scrapers ask for: OpenMetrics 1.0, and Prometheus' own text format 0.0.4.

use std::collections::HashSet;

use hyper::header::{ACCEPT, HeaderMap};

use crate::telemetry::Telemetry;

/// Metrics that can be written out.
pub(crate) trait Exposition: Send + Sync + 'static {
    /// All of them as OpenMetrics text, ending in `# EOF`.
    fn encode(&self) -> String;
}

impl Exposition for Telemetry {
    fn encode(&self) -> String {
        Self::encode(self)
    }
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// OpenMetrics for those who name it, the older format for all others.
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
        let named = |accept: &str| accept.to_ascii_lowercase().contains("application/openmetrics-text");
        if accepted.into_iter().any(named) { Self::OpenMetrics } else { Self::Text }
    }

    /// The media type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text;charset=utf-8;version=1.0.0",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// `metrics` in this format.
    pub(super) fn write(self, metrics: &dyn Exposition) -> String {
        let open_metrics = metrics.encode();
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => text(&open_metrics),
        }
    }
}

/// OpenMetrics in the older format: there a counter is declared by the name of its samples, which ends in `_total`, and neither
/// units nor the end are told.
fn text(open_metrics: &str) -> String {
    let declared = open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let counters: HashSet<&str> = declared.filter_map(|declared| declared.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    for line in open_metrics.lines() {
        let (name, rest) = match line.strip_prefix("# ") {
            None => {
                text.extend([line, "\n"]);
                continue;
            }
            Some(told) => match told.split_once(' ') {
                Some((what @ ("TYPE" | "HELP"), told)) => {
                    text.extend(["# ", what, " "]);
                    told.split_once(' ').unwrap_or((told, ""))
                }
                _ => continue,
            },
        };
        let suffix = if counters.contains(name) { "_total" } else { "" };
        let rest = if rest == "unknown" { "untyped" } else { rest };
        text.extend([name, suffix, " ", rest, "\n"]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_has_its_own_declarations() {
        let open_metrics = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1 # 2\"} 3\n# HELP b Of what?\n# TYPE b unknown\n\
                            # UNIT b seconds\nb 1\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n# EOF\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1 # 2\"} 3\n# HELP b Of what?\n\
                        # TYPE b untyped\nb 1\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(text(open_metrics), expected);
    }
}
