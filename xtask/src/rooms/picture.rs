//! The rooms and their arrows, and how long files and functions are, as text or as a graph for Graphviz.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;

use super::{Arrows, File, arrows, cycle, read, walls::HOUSES};

/// Every folder of sources in the workspace.
const SOURCES: [&str; 7] = [
    "agent/core/src",
    "agent/daemon/src",
    "ebpf/common/src",
    "ebpf/programs/src",
    "integration/src",
    "proto/src",
    "xtask/src",
];
/// What a file and a function should stay below, in lines.
const LONG_FILE: usize = 400;
const LONG_FUNCTION: usize = 80;
/// How many of the longest are named.
const NAMED: usize = 10;

/// Rooms, arrows and lengths in the workspace at `root`, to be read.
pub(crate) fn text(root: &Path) -> Result<String> {
    let mut text = String::new();
    for house in &HOUSES {
        let arrows = arrows(&read(&root.join(house.sources))?);
        let end = cycle(&arrows).map_or("no cycle".to_owned(), |way| format!("cycle: {}", way.join(" → ")));
        writeln!(text, "{}: {} rooms, {} arrows, {end}", house.sources, arrows.len(), count(&arrows))?;
        for (from, to) in &arrows {
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            writeln!(text, "  {from:<12} → {}", if to.is_empty() { "–".to_owned() } else { to.join(", ") })?;
        }
        text.push('\n');
    }
    let mut files = Vec::new();
    for sources in SOURCES {
        for File { path, lines, source } in read(&root.join(sources))? {
            files.push(File { path: format!("{sources}/{path}"), lines, source });
        }
    }
    Ok(text + &lengths(&files))
}

/// The rooms of each crate with their arrows, in Graphviz's language.
pub(crate) fn dot(root: &Path) -> Result<String> {
    let mut text = "digraph rooms {\n  rankdir = LR\n  node [shape = box]\n".to_owned();
    for (index, house) in HOUSES.iter().enumerate() {
        writeln!(text, "  subgraph cluster_{index} {{\n    label = \"{}\"", house.sources)?;
        for (from, to) in arrows(&read(&root.join(house.sources))?) {
            writeln!(text, "    \"{index}.{from}\" [label = \"{from}\"]")?;
            for to in to {
                writeln!(text, "    \"{index}.{from}\" -> \"{index}.{to}\"")?;
            }
        }
        text += "  }\n";
    }
    Ok(text + "}\n")
}

fn count(arrows: &Arrows) -> usize {
    arrows.values().map(std::collections::BTreeSet::len).sum()
}

fn lengths(files: &[File]) -> String {
    let sizes: Vec<(usize, String)> = files.iter().map(|file| (file.lines, file.path.clone())).collect();
    let functions: Vec<(usize, String)> = files
        .iter()
        .flat_map(|file| file.source.functions.iter().map(move |function| (file, function)))
        .map(|(file, function)| {
            (function.lines, format!("{} ({}:{})", function.name, file.path, function.at))
        })
        .collect();
    longest("files", sizes, LONG_FILE) + "\n" + &longest("functions", functions, LONG_FUNCTION)
}

fn longest(what: &str, mut all: Vec<(usize, String)>, limit: usize) -> String {
    let lines: usize = all.iter().map(|(lines, _)| lines).sum();
    let long = all.iter().filter(|(lines, _)| *lines > limit).count();
    let mean = lines / all.len().max(1);
    let mut text = format!(
        "{} {what}, {lines} lines, {mean} each; {long} longer than {limit}. The longest:\n",
        all.len()
    );
    all.sort_by(|one, other| other.cmp(one));
    for (lines, name) in all.iter().take(NAMED) {
        text += &format!("  {lines:>5}  {name}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_come_first_and_those_above_the_limit_are_counted() {
        let all = vec![(3, "a".to_owned()), (90, "b".to_owned()), (81, "c".to_owned())];
        let told = longest("functions", all, LONG_FUNCTION);
        assert_eq!(
            told,
            "3 functions, 174 lines, 58 each; 2 longer than 80. The longest:\n     90  b\n     81  c\n      3  a\n"
        );
    }
}
