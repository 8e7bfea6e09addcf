//! A run as one HTML file that needs no other: plots as inline SVG, no scripts, light and dark.

use std::fmt::Write as _;

use super::{
    figures::Better,
    plot,
    results::{Run, Series, Spread, shown},
};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2330; --faint: #667085; --line: #d8dde6; --page: #fff; --card: #f7f8fa }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --faint: #98a2b3; --line: #344054; --page: #12161d; --card: #1a202b } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1400px; margin: 2rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem }
h3 { font-size: 1rem; margin: 0 } p.about, .faint { color: var(--faint); margin: .1rem 0 .5rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(430px, 1fr)); gap: 1rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem }
.card h4 { font-size: .82rem; font-weight: 600; margin: .6rem 0 .1rem; color: var(--faint) }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, sans-serif }
svg text { fill: var(--ink) } svg .name { text-anchor: end } svg .value { font-variant-numeric: tabular-nums }
svg .spread { stroke: var(--ink); stroke-width: 1.2; fill: none; opacity: .75 } svg circle { fill: var(--page); stroke: var(--ink); stroke-width: .8 }
.p0 { fill: #98a2b3 } .p1 { fill: #2e90fa } .p2 { fill: #f79009 } .p3 { fill: #fdb022 } .p4 { fill: #ee46bc } .p5 { fill: #faa7e0 } .p6 { fill: #12b76a } .p7 { fill: #7a5af8 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } td.best { font-weight: 700 } tr.load td { font-weight: 600; padding-top: .8rem; border: 0 }
.warn { border-left: 4px solid #f04438; padding: .4rem .8rem; background: var(--card) }
ul.legend { list-style: none; padding: 0 } ul.legend svg { display: inline-block; width: 12px; height: 12px; margin-right: .5rem }
";

/// Headings over loads, by how the names of the loads begin.
const SECTIONS: [(&str, &str); 9] = [
    ("bulk", "Throughput between two nodes"),
    ("rtt", "Round trip between two nodes"),
    ("http", "HTTP over connections that stay"),
    ("grpc", "gRPC"),
    ("conn", "New connections"),
    ("node", "Two pods on one node"),
    ("first", "First byte"),
    ("memory", "Memory"),
    ("enrol", "Pods that join the mesh"),
];

/// The report.
pub(super) fn report(run: &Run) -> String {
    let machine = &run.machine;
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>ambit bench, {started}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\
         <h1>ambit bench</h1><p class=\"about\">{started} · {processors} × {processor} · kernel {kernel}, TCP with {congestion} · {memory} MiB · load \
         {load} before the run · {rounds} rounds, {seconds} s for each load</p>",
        started = escaped(&run.started),
        processors = machine.processors,
        processor = escaped(&machine.processor),
        kernel = escaped(&machine.kernel),
        congestion = escaped(&machine.congestion_control),
        memory = machine.memory_mib,
        load = machine.load_before,
        rounds = run.rounds,
        seconds = run.seconds,
    );
    if run.interrupted {
        page += "<p class=\"warn\">This run was stopped before its end: what follows is what it had measured.</p>";
    }
    for failure in &run.failures {
        // Writing into a String does not fail.
        let _ = write!(
            page,
            "<p class=\"warn\">{} failed over {} in round {}: {}</p>",
            escaped(&failure.load),
            escaped(&failure.path),
            failure.round,
            escaped(&failure.error)
        );
    }
    page += &legend(run);
    for (start, heading) in SECTIONS {
        let loads = run.loads.iter().filter(|load| load.name.split('-').next() == Some(start));
        let cards: String = loads.map(|load| card(run, &load.name, &load.about)).collect();
        if !cards.is_empty() {
            let _ = write!(page, "<h2>{heading}</h2><div class=\"cards\">{cards}</div>");
        }
    }
    page += &table(run);
    page + METHOD + "</body></html>\n"
}

const METHOD: &str = "<h2>How to read this</h2><ul>\
<li>Every load goes over every path in every round, the paths in turn; the bar is the median of the rounds, the line over it \
goes from the least to the greatest, and each round is a dot.</li>\
<li>A value in parentheses is the median of the shares of plaintext in the same round: for throughput and rates more is better, \
for times less.</li>\
<li>Processor time is that of the processes that carry the path, of both nodes. What the kernel does for packets in \
interrupts is not theirs, so plaintext has none.</li>\
<li>Proxies get their connections on loopback in the client's pod, speak TLS 1.3 with ECDSA P-256 certificates, and both check \
the name in the peer's certificate.</li></ul>";

fn legend(run: &Run) -> String {
    let lines = run.paths.iter().enumerate().map(|(number, path)| {
        format!(
            "<li><svg viewBox=\"0 0 12 12\"><rect class=\"p{}\" width=\"12\" height=\"12\" rx=\"2\"/></svg><b>{}</b> \
             <span class=\"faint\">{}</span></li>",
            number % 8,
            escaped(&path.name),
            escaped(&path.about)
        )
    });
    format!("<ul class=\"legend\">{}</ul>", lines.collect::<String>())
}

/// The figures of a load, a plot each; nothing if it has none.
fn card(run: &Run, load: &str, about: &str) -> String {
    let plots: String = run
        .figures(load)
        .into_iter()
        .map(|figure| {
            let better = if figure.better == Better::More { "more is better" } else { "less is better" };
            format!(
                "<h4>{}, {} · {better}</h4>{}",
                escaped(&figure.label),
                escaped(&figure.unit),
                plot::bars(run, &of_paths(run, load, &figure.figure))
            )
        })
        .collect();
    if plots.is_empty() {
        return plots;
    }
    format!(
        "<div class=\"card\"><h3>{}</h3><p class=\"about\">{}</p>{plots}</div>",
        escaped(load),
        escaped(about)
    )
}

/// A figure of each path that has it, with the path's colour.
fn of_paths<'a>(run: &'a Run, load: &str, figure: &str) -> Vec<(usize, &'a Series)> {
    let paths = run.paths.iter().enumerate();
    paths.filter_map(|(number, path)| Some((number % 8, run.series(load, &path.name, figure)?))).collect()
}

/// All figures with their spreads; the best of what is no plaintext is bold.
fn table(run: &Run) -> String {
    let heads: String = run.paths.iter().map(|path| format!("<th>{}</th>", escaped(&path.name))).collect();
    let mut rows = String::new();
    for load in &run.loads {
        let figures = run.figures(&load.name);
        if figures.is_empty() {
            continue;
        }
        let _ = write!(
            rows,
            "<tr class=\"load\"><td colspan=\"{}\">{}</td></tr>",
            run.paths.len() + 1,
            escaped(&load.name)
        );
        for figure in figures {
            let best = best(run, &load.name, figure);
            let cells =
                run.paths.iter().map(|path| match run.series(&load.name, &path.name, &figure.figure) {
                    None => "<td>–</td>".to_owned(),
                    Some(series) => {
                        let Spread { low, median, high } = series.spread();
                        let class = if best == Some(path.name.as_str()) { " class=\"best\"" } else { "" };
                        let spread = format!("{}–{}", shown(low), shown(high));
                        format!("<td{class}>{} <span class=\"faint\">{spread}</span></td>", shown(median))
                    }
                });
            let _ = write!(
                rows,
                "<tr><td>{}, {}</td>{}</tr>",
                escaped(&figure.label),
                escaped(&figure.unit),
                cells.collect::<String>()
            );
        }
    }
    format!(
        "<h2>All figures</h2><p class=\"about\">Median, least to greatest; bold is the best beside plaintext.</p>\
         <div class=\"wide\"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

fn best<'a>(run: &'a Run, load: &str, figure: &Series) -> Option<&'a str> {
    let others = run.paths.iter().filter(|path| path.name != super::results::PLAINTEXT);
    let medians = others.filter_map(|path| {
        Some((path.name.as_str(), run.series(load, &path.name, &figure.figure)?.spread().median))
    });
    let order = |one: &(&str, f64), other: &(&str, f64)| match figure.better {
        Better::More => one.1.total_cmp(&other.1),
        Better::Less => other.1.total_cmp(&one.1),
    };
    medians.max_by(order).map(|(name, _)| name)
}

/// Text as it may stand in HTML, in attributes too.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            about, figures,
            results::{Failure, Machine, PLAINTEXT},
        },
        *,
    };

    #[test]
    fn a_report_has_every_figure_and_nothing_from_elsewhere() {
        let mut run = Run::new("now".to_owned(), Machine::default(), 2, 1);
        run.paths = vec![about(PLAINTEXT, "nothing"), about("ambit", "agents"), about("mine", "a <b> & c")];
        run.loads = vec![about("bulk-1-up", "one stream"), about("http-1", "not measured")];
        for (path, value) in [(PLAINTEXT, 18.0), ("ambit", 11.0), ("mine", 12.0)] {
            run.add("bulk-1-up", path, &figures::GBPS, 1, value);
            run.add("bulk-1-up", path, &figures::GBPS, 2, value + 0.5);
        }
        run.failures.push(Failure {
            load: "http-1".to_owned(),
            path: "mine".to_owned(),
            round: 1,
            error: "refused <at once>".to_owned(),
        });
        let page = report(&run);
        assert!(
            page.contains("Throughput between two nodes") && !page.contains("HTTP over connections"),
            "{page}"
        );
        assert!(page.contains("a &lt;b&gt; &amp; c") && page.contains("refused &lt;at once&gt;"));
        assert!(
            page.contains("<td class=\"best\">12.2 ") || page.contains("<td class=\"best\">12.3 "),
            "{page}"
        );
        assert_eq!(page.matches("<circle").count(), 6);
        assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("src="));
    }
}
