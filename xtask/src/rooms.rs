//! The walls between rooms (docs/architecture.md): which room imports which, read from the sources.
//!
//! Finds import cycles and imports across a wall. Test code is free of both. Reads `crate::`, `super::` and crate paths
//! by their text; macros that build paths would escape it, and there are none.

mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};

/// Rooms that may know everyone, and that no other room may know.
const WIRING: [&str; 2] = ["app", "cli"];

/// What the sources of a crate are held to.
struct House {
    /// The crate's `src`, from the workspace root.
    sources: &'static str,
    /// A room, and the paths it may not name: rooms of this crate as `crate::room`, others by their crate.
    walls: &'static [(&'static str, &'static [&'static str])],
    /// Paths that no room may name.
    nowhere: &'static [&'static str],
}

const HOUSES: [House; 2] = [
    House {
        sources: "agent/core/src",
        walls: &[
            (
                "model",
                &["crate::policy", "crate::discovery", "crate::rotation", "crate::frame", "crate::reason"],
            ),
            ("policy", &["crate::discovery", "crate::frame", "crate::rotation"]),
            ("discovery", &["crate::policy", "crate::frame", "crate::rotation"]),
            ("rotation", &["crate::discovery", "crate::policy", "crate::frame"]),
            ("frame", &["crate::discovery", "crate::policy", "crate::rotation"]),
        ],
        nowhere: &[
            "tokio",
            "rand",
            "std::env",
            "std::fs",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::process",
        ],
    },
    House {
        sources: "agent/daemon/src",
        walls: &[
            (
                "capture",
                &["crate::identity", "crate::tunnel", "crate::proxy", "ambit_core::policy", "rustls"],
            ),
            ("proxy", &["rustls", "h2", "aya", "crate::identity", "ambit_core::frame"]),
            ("tunnel", &["crate::discovery", "ambit_core::discovery", "ambit_core::policy", "crate::proxy"]),
            (
                "identity",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "ambit_core::discovery",
                ],
            ),
            (
                "ca",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "ambit_core::discovery",
                    "ambit_core::policy",
                ],
            ),
            ("discovery", &["crate::proxy", "crate::identity", "crate::tunnel", "crate::capture"]),
            (
                "cni",
                &[
                    "crate::proxy",
                    "crate::discovery",
                    "crate::tunnel",
                    "crate::capture",
                    "crate::identity",
                    "ambit_core::policy",
                    "aya",
                ],
            ),
            (
                "reports",
                &["crate::proxy", "crate::identity", "crate::tunnel", "crate::capture", "ambit_core::policy"],
            ),
            (
                "cluster",
                &[
                    "crate::proxy",
                    "crate::identity",
                    "crate::tunnel",
                    "crate::capture",
                    "crate::discovery",
                    "ambit_core::discovery",
                    "ambit_core::policy",
                ],
            ),
            ("admin", &["crate::proxy", "crate::tunnel", "crate::capture", "ambit_core::policy"]),
            ("telemetry", &["crate::proxy", "crate::tunnel", "crate::capture", "ambit_core::policy"]),
        ],
        nowhere: &[],
    },
];

/// Every breach in the workspace at `root`, one sentence each.
pub(crate) fn breaches(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for house in &HOUSES {
        let mut files = Vec::new();
        collect(&root.join(house.sources), Path::new(""), &mut files)?;
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        found.extend(house.breaches(&files));
    }
    Ok(found)
}

impl House {
    /// The breaches in `files`, each a path below `src` and its text.
    fn breaches(&self, files: &[(&str, &str)]) -> Vec<String> {
        let mut found = Vec::new();
        let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let rooms: BTreeSet<String> = files.iter().filter_map(|(path, _)| room(path)).collect();
        for (path, text) in files {
            let Some(from) = room(path).filter(|from| !WIRING.contains(&from.as_str())) else { continue };
            let forbidden =
                self.walls.iter().find(|(name, _)| *name == from).map_or(&[][..], |(_, walls)| walls);
            for import in source::imports(text, depth(path)) {
                if let Some(wall) =
                    forbidden.iter().chain(self.nowhere).find(|wall| starts_with(&import, wall))
                {
                    found.push(format!("{}/{path}: room {from} may not touch {wall}", self.sources));
                }
                let Some(to) = import.strip_prefix("crate::").and_then(|rest| rest.split("::").next()) else {
                    continue;
                };
                if WIRING.contains(&to) && rooms.contains(to) {
                    found.push(format!("{}/{path}: only the wiring may touch {to}", self.sources));
                } else if to != from && rooms.contains(to) {
                    graph.entry(from.clone()).or_default().insert(to.to_owned());
                }
            }
        }
        found.dedup();
        if let Some(cycle) = cycle(&graph) {
            found.push(format!("{}: import cycle {}", self.sources, cycle.join(" → ")));
        }
        found
    }
}

/// A room is a module at the crate's root; `main.rs` and `lib.rs` are in none.
fn room(path: &str) -> Option<String> {
    match path.split_once('/') {
        Some((folder, _)) => Some(folder.to_owned()),
        None => path.strip_suffix(".rs").filter(|name| !["main", "lib"].contains(name)).map(str::to_owned),
    }
}

/// How many modules deep a file is: 1 for `room.rs` and `room/mod.rs`, 2 for `room/part.rs`.
fn depth(path: &str) -> usize {
    let parts = path.trim_end_matches(".rs").split('/').collect::<Vec<_>>();
    parts.len() - usize::from(parts.last() == Some(&"mod"))
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

fn collect(folder: &Path, below: &Path, files: &mut Vec<(String, String)>) -> Result<()> {
    let entries =
        fs::read_dir(folder.join(below)).with_context(|| folder.join(below).display().to_string())?;
    for entry in entries {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            if name != "tests" {
                collect(folder, &path, files)?;
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let text =
                fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string())?;
            files.push((path.to_string_lossy().into_owned(), text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUSE: House = House {
        sources: "src",
        walls: &[("tunnel", &["crate::discovery", "ambit_core::policy"]), ("proxy", &["rustls"])],
        nowhere: &["tokio"],
    };

    #[test]
    fn a_clean_house_has_no_breach() {
        let files = [
            ("main.rs", "mod app; mod proxy; use crate::proxy::x;"),
            ("app/mod.rs", "use crate::{proxy, tunnel}; use tokio::x;"),
            ("proxy/mod.rs", "use crate::tunnel::Link; use ambit_core::policy;"),
            ("proxy/relay.rs", "use super::x; use super::super::tunnel;"),
            ("tunnel/mod.rs", "use crate::tunnel::inner;"),
        ];
        assert_eq!(HOUSE.breaches(&files), Vec::<String>::new());
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
                ("proxy/mod.rs", "use crate::tunnel;"),
                ("tunnel/mod.rs", back),
                ("tunnel/part.rs", ""),
                ("a.rs", ""),
            ];
            let found = HOUSE.breaches(&files);
            assert_eq!(found, ["src: import cycle proxy → tunnel → proxy"], "{back}");
        }
    }

    #[test]
    fn walls_hold_for_rooms_and_crates() {
        for (path, text, wall) in [
            ("tunnel/mod.rs", "use crate::discovery::Feed;", "crate::discovery"),
            ("tunnel/link.rs", "use ambit_core::{model, policy::{decide}};", "ambit_core::policy"),
            ("proxy/mod.rs", "fn f(x: rustls::Connection) {}", "rustls"),
            ("proxy/mod.rs", "use tokio::net;", "tokio"),
        ] {
            let files = [(path, text), ("discovery/mod.rs", ""), ("app/mod.rs", "")];
            let found = HOUSE.breaches(&files);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].ends_with(&format!("may not touch {wall}")), "{found:?}");
        }
        let found = HOUSE.breaches(&[("proxy/mod.rs", "use crate::app::App;"), ("app/mod.rs", "")]);
        assert_eq!(found, ["src/proxy/mod.rs: only the wiring may touch app"]);
    }

    #[test]
    fn tests_comments_and_texts_are_free() {
        let text = "// use crate::discovery\n/* crate::discovery /* nested */ */\nconst A: &str = \"crate::discovery\";\n\
                    const B: &str = r#\"crate::discovery \" \"#;\n#[cfg(test)]\nmod tests { use crate::discovery; fn f() { {} } }\n\
                    #[cfg(test)]\nuse crate::discovery::X;\n#[cfg(test)]\nmod other;\nconst C: char = '\"';\n\
                    fn f<'a>(x: &'a str) {} use my_crate::discovery;";
        let files = [("tunnel/mod.rs", text), ("discovery/mod.rs", "")];
        assert_eq!(HOUSE.breaches(&files), Vec::<String>::new());
    }

    #[test]
    fn this_workspace_has_no_breach() {
        assert_eq!(breaches(crate::workspace::root()).unwrap(), Vec::<String>::new());
    }
}
