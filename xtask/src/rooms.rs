//! The walls between rooms (docs/architecture.md): which room imports which, read from the sources.
//!
//! Finds import cycles and imports across a wall, and draws the rooms with their arrows. Test code is free of both.

mod picture;
mod source;
mod walls;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};

pub(crate) use self::picture::{dot, text};
use self::{
    source::Source,
    walls::{HOUSES, House, WIRING},
};

/// Rooms, and those that each imports.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// A source file of a crate.
struct File {
    /// Below the folder that was read.
    path: String,
    lines: usize,
    source: Source,
}

/// Every breach in the workspace at `root`, one sentence each.
pub(crate) fn breaches(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for house in &HOUSES {
        found.extend(house.breaches(&read(&root.join(house.sources))?));
    }
    Ok(found)
}

impl House {
    /// The breaches in `files`.
    fn breaches(&self, files: &[File]) -> Vec<String> {
        let mut found = Vec::new();
        let rooms = rooms(files);
        for File { path, source, .. } in files {
            let Some(from) = room(path) else { continue };
            let forbidden =
                self.walls.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, walls)| walls);
            for import in &source.imports {
                if let Some(wall) =
                    forbidden.iter().chain(self.nowhere).find(|wall| starts_with(import, wall))
                {
                    found.push(format!("{}/{path}: room {from} may not touch {wall}", self.sources));
                }
                if let Some(to) = target(import, &rooms)
                    && WIRING.contains(&to)
                    && !WIRING.contains(&from)
                {
                    found.push(format!("{}/{path}: only the wiring may touch {to}", self.sources));
                }
            }
        }
        found.dedup();
        if let Some(cycle) = cycle(&arrows(files)) {
            found.push(format!("{}: import cycle {}", self.sources, cycle.join(" → ")));
        }
        found
    }
}

fn rooms(files: &[File]) -> BTreeSet<&str> {
    files.iter().filter_map(|file| room(&file.path)).collect()
}

/// Every room with those that it imports.
fn arrows(files: &[File]) -> Arrows {
    let rooms = rooms(files);
    let mut arrows: Arrows = rooms.iter().map(|room| ((*room).to_owned(), BTreeSet::new())).collect();
    for File { path, source, .. } in files {
        let Some(from) = room(path) else { continue };
        let others = source.imports.iter().filter_map(|import| target(import, &rooms));
        let others = others.filter(|to| *to != from).map(str::to_owned);
        arrows.entry(from.to_owned()).or_default().extend(others);
    }
    arrows
}

/// The room that an import leads to, if any of this crate.
fn target<'a>(import: &'a str, rooms: &BTreeSet<&str>) -> Option<&'a str> {
    let name = import.strip_prefix("crate::")?.split("::").next()?;
    rooms.contains(name).then_some(name)
}

/// A room is a module at the crate's root; `main.rs` and `lib.rs` are in none.
fn room(path: &str) -> Option<&str> {
    match path.split_once('/') {
        Some((folder, _)) => Some(folder),
        None => path.strip_suffix(".rs").filter(|name| !["main", "lib"].contains(name)),
    }
}

/// How many modules deep a file is: 0 for the crate's root, 1 for `room.rs`, 2 for `room/part.rs`.
fn depth(path: &str) -> usize {
    if ["main.rs", "lib.rs"].contains(&path) { 0 } else { path.split('/').count() }
}

fn starts_with(import: &str, wall: &str) -> bool {
    import.strip_prefix(wall).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// One cycle in the graph, its first room repeated at the end.
fn cycle(graph: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk<'a>(
        graph: &'a BTreeMap<String, BTreeSet<String>>,
        at: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|room| *room == at) {
            return Some(way[start..].iter().chain([&at]).map(|room| (*room).to_owned()).collect());
        }
        if !done.insert(at) {
            return None;
        }
        way.push(at);
        let found = graph.get(at).into_iter().flatten().find_map(|next| walk(graph, next, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|room| walk(graph, room, &mut Vec::new(), &mut done))
}

/// The sources in `folder` and below, but for those of tests, in the order of their paths.
fn read(folder: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    collect(folder, Path::new(""), &mut files)?;
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn collect(folder: &Path, below: &Path, files: &mut Vec<File>) -> Result<()> {
    let place = folder.join(below);
    for entry in fs::read_dir(&place).with_context(|| place.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = below.join(&name);
        if entry.file_type()?.is_dir() {
            if !["tests", "gen"].contains(&name.as_str()) {
                collect(folder, &path, files)?;
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text =
                fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string())?;
            let path = path.to_string_lossy().into_owned();
            files.push(file(path, &text).with_context(|| entry.path().display().to_string())?);
        }
    }
    Ok(())
}

fn file(path: String, text: &str) -> Result<File> {
    let source = Source::read(text, depth(&path))?;
    Ok(File { lines: text.lines().count(), path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUSE: House = House {
        sources: "src",
        walls: &[("tunnel", &["crate::discovery", "ambit_core::policy"]), ("proxy", &["rustls"])],
        nowhere: &["tokio"],
    };

    fn files(files: &[(&str, &str)]) -> Vec<File> {
        files.iter().map(|(path, text)| file((*path).to_owned(), text).unwrap()).collect()
    }

    #[test]
    fn a_clean_house_has_no_breach() {
        let files = [
            ("main.rs", "mod app; mod proxy; use crate::proxy::x;"),
            ("app.rs", "use crate::{proxy, tunnel};"),
            ("proxy.rs", "use crate::tunnel::Link; use ambit_core::policy;"),
            ("proxy/relay.rs", "use super::x; use super::super::tunnel;"),
            ("tunnel.rs", "use crate::tunnel::inner;"),
        ];
        assert_eq!(HOUSE.breaches(&self::files(&files)), Vec::<String>::new());
    }

    #[test]
    fn cycles_are_found_whatever_the_spelling() {
        for back in [
            "use crate::proxy;",
            "use super::proxy::x;",
            "fn f() { crate::proxy::g() }",
            "use crate::{a, proxy::{b}};",
        ] {
            let files = [
                ("proxy.rs", "use crate::tunnel;"),
                ("tunnel.rs", back),
                ("tunnel/part.rs", ""),
                ("a.rs", ""),
            ];
            let found = HOUSE.breaches(&self::files(&files));
            assert_eq!(found, ["src: import cycle proxy → tunnel → proxy"], "{back}");
        }
    }

    #[test]
    fn the_wiring_is_free_of_cycles_too() {
        let files = [("app.rs", "use crate::cli::Flags;"), ("cli.rs", "fn f() { crate::app::run() }")];
        assert_eq!(HOUSE.breaches(&self::files(&files)), ["src: import cycle app → cli → app"]);
    }

    #[test]
    fn walls_hold_for_rooms_and_crates() {
        for (path, text, wall) in [
            ("tunnel.rs", "use crate::discovery::Feed;", "crate::discovery"),
            ("tunnel/link.rs", "use ambit_core::{model, policy::{decide}};", "ambit_core::policy"),
            ("proxy.rs", "fn f(x: rustls::Connection) {}", "rustls"),
            ("proxy.rs", "use tokio::net;", "tokio"),
        ] {
            let files = [(path, text), ("discovery.rs", ""), ("app.rs", "")];
            let found = HOUSE.breaches(&self::files(&files));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].ends_with(&format!("may not touch {wall}")), "{found:?}");
        }
        let found = HOUSE.breaches(&files(&[("proxy.rs", "use crate::app::App;"), ("app.rs", "")]));
        assert_eq!(found, ["src/proxy.rs: only the wiring may touch app"]);
    }

    #[test]
    fn tests_comments_and_texts_are_free() {
        let text = "// use crate::discovery\n/* crate::discovery /* nested */ */\nconst A: &str = \"crate::discovery\";\n\
                    const B: &str = r#\"crate::discovery \" \"#;\n#[cfg(test)]\nmod tests { use crate::discovery; fn f() { {} } }\n\
                    #[cfg(test)]\nuse crate::discovery::X;\n#[cfg(test)]\nmod other;\nconst C: char = '\"';\n\
                    fn f<'a>(x: &'a str) {} use my_crate::discovery;";
        let files = [("tunnel.rs", text), ("discovery.rs", "")];
        assert_eq!(HOUSE.breaches(&self::files(&files)), Vec::<String>::new());
    }

    #[test]
    fn this_workspace_has_no_breach() {
        assert_eq!(breaches(crate::workspace::root()).unwrap(), Vec::<String>::new());
    }
}
