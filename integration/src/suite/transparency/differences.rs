//! What programs may see differently in the mesh, and why; and the comparison.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::programs::{Told, Way};
use crate::process;

/// What a program sees differently. Users read of it in `docs/compatibility.md`.
struct Difference {
    /// `topic::program`.
    program: &'static str,
    /// The names under which it tells what differs.
    what: &'static [&'static str],
    why: &'static str,
}

const PORT_OF_ITS_OWN: &str =
    "the agent dials the application from the client's address, and from a port of its own";
const MARKED: &str =
    "the mark of the server's connection keeps its answers inside the pod, and stays what it is";
const LOCAL: &str = "the connection to the agent is a local one";
const NO_KEYS: &str = "agents do not know the keys of TCP-MD5 and TCP-AO";
const IN_PLACE: &str = "urgent data comes in its place among the rest, and is not told of";
const LATER: &str = "the tunnel times out first, then the application's own keepalive";

/// What programs between two pods in the mesh see differently.
const MESHED: &[Difference] = &[
    differs("connecting::the_server_sees_the_port_of_getsockname", &["ports agree"], PORT_OF_ITS_OWN),
    differs(
        "connecting::one_bound_port_twice_to_one_server",
        &["connect"],
        "each connection to the agent has a port of the agent's for itself",
    ),
    differs(
        "accepting::on_a_port_whose_client_closed_first",
        &["bind"],
        "tunnels that wait to be used again are on the port; SO_REUSEADDR, which servers set, passes them",
    ),
    differs("options::mark", &["before", "set"], MARKED),
    differs("options::segment_size", &["the client's", "the server's"], LOCAL),
    differs("options::path_mtu", &["the client's", "the server's"], LOCAL),
    differs("options::signatures", &["connected"], NO_KEYS),
    differs(
        "options::in_the_kernels_table",
        &["the client's connection"],
        "ss and netstat show the agent as the peer; getpeername does not",
    ),
    differs("data::urgent_in_line", &["poll", "up to the mark", "at the mark", "on"], IN_PLACE),
    differs("data::urgent_apart", &["poll", "select", "urgent", "read"], IN_PLACE),
    differs("data::urgent_from_the_server", &["poll", "urgent"], IN_PLACE),
    differs("severed::a_client_with_keepalive", &["took"], LATER),
    differs("severed::a_server_with_keepalive", &["took"], LATER),
    differs(
        "severed::a_user_timeout",
        &["recv"],
        "what has timed out is the tunnel; the application is told by a reset",
    ),
];

/// What they see of tunnels, of which there are none between two pods of one node.
const OF_TUNNELS: &str = "accepting::on_a_port_whose_client_closed_first";

/// What programs see differently whose client is not in the mesh.
const FROM_OUTSIDE: &[Difference] = &[
    differs("connecting::the_server_sees_the_port_of_getsockname", &["ports agree"], PORT_OF_ITS_OWN),
    differs("options::mark", &["before", "set"], MARKED),
    differs("options::segment_size", &["the server's"], LOCAL),
    differs("options::path_mtu", &["the server's"], LOCAL),
    differs("options::signatures", &["connected"], NO_KEYS),
    differs("data::urgent_in_line", &["poll", "up to the mark", "at the mark", "on"], IN_PLACE),
    differs("data::urgent_apart", &["poll", "select", "urgent", "read"], IN_PLACE),
    differs("data::urgent_from_the_server", &["poll", "urgent"], IN_PLACE),
    differs("severed::a_server_with_keepalive", &["took"], LATER),
];

/// Clients that see something else, and why.
pub(super) const EXPECTED_OF_CLIENTS: &[(&str, &str)] = &[];

const fn differs(program: &'static str, what: &'static [&'static str], why: &'static str) -> Difference {
    Difference { program, what, why }
}

/// By how much times may differ: far less than a retransmission, more than a busy machine is late. An emulated one is later.
const TOLERANCE_MS: f64 = 600.0;
/// How many times larger one amount may be than the other: what is under way stands in the buffers of three connections instead
/// of one, which the kernel makes as large as it likes. An agent reads as fast as it is written to until its own reader is full, and the
/// faster it does, the larger the kernel makes that buffer meanwhile: where tcp_rmem allows 32 MB, up to 24 MB were seen beside 0.8.
const TOLERANCE_FACTOR: f64 = 40.0;

/// Demands that all programs saw the same, but for what is listed, and that what is listed differs; answers with a line about
/// it.
pub(super) fn judge(topic: &str, way: Way, plain: &[Told], meshed: &[Told]) -> Result<String> {
    let listed_for = match way {
        Way::Plain => &[],
        Way::Meshed | Way::OneNode => MESHED,
        Way::FromOutside => FROM_OUTSIDE,
    };
    let tunnels = |known: &&Difference| known.program == OF_TUNNELS && way == Way::OneNode;
    let differences: Vec<&Difference> = listed_for.iter().filter(|known| !tunnels(known)).collect();
    // From outside those do not run that dial neither pod.
    let ran = |plain: &&Told| meshed.iter().any(|meshed| meshed.program == plain.program);
    let plain: Vec<&Told> = plain.iter().filter(ran).collect();
    ensure!(!plain.is_empty() && plain.len() == meshed.len(), "other programs ran: {plain:?}, {meshed:?}");
    let mut wrong = String::new();
    let mut listed = Vec::new();
    for (plain, meshed) in plain.iter().zip(meshed) {
        ensure!(plain.program == meshed.program, "in another order: {}", meshed.program);
        let program = format!("{topic}::{}", plain.program);
        let differing = differing(plain, meshed);
        let known = differences.iter().find(|known| known.program == program);
        let expected: BTreeSet<&str> = known.iter().flat_map(|known| known.what).copied().collect();
        if differing != expected {
            let gone: Vec<_> = expected.difference(&differing).collect();
            if !gone.is_empty() {
                write!(wrong, "\n{program}: listed as different, and is not: {gone:?}")?;
            }
            write!(wrong, "\n{program}\n  plain {}\n  {way:?} {}", shown(plain), shown(meshed))?;
        } else if let Some(known) = known {
            listed.push((plain.program.as_str(), known.why));
        }
    }
    ensure!(wrong.is_empty(), "what programs saw differs otherwise than is listed:{wrong}");
    let of_topic = differences.iter().filter(|known| known.program.starts_with(&format!("{topic}::")));
    ensure!(of_topic.count() == listed.len(), "a listed program has not run");
    let names: Vec<&str> = plain.iter().map(|told| told.program.as_str()).collect();
    // Named once is enough.
    Ok(note(if way == Way::FromOutside { &[] } else { &names }, names.len(), &listed))
}

/// All that ran, and what was seen differently, in a line.
pub(super) fn note(names: &[&str], all: usize, listed: &[(&str, &str)]) -> String {
    let mut note = format!("{} of {all} saw the same", all - listed.len());
    if !names.is_empty() {
        note += &format!(": {}", names.join("; "));
    }
    for (name, why) in listed {
        note += &format!("\n      as listed, not {name}: {why}");
    }
    note
}

/// The names under which two runs of a program told different things, or only one told anything.
fn differing<'a>(plain: &'a Told, meshed: &'a Told) -> BTreeSet<&'a str> {
    let longest = plain.saw.len().max(meshed.saw.len());
    let pairs = (0..longest).map(|at| [plain.saw.get(at), meshed.saw.get(at)]);
    let alike = |pair: &[Option<&(String, Value)>; 2]| match pair {
        [Some((name, one)), Some((other_name, other))] => name == other_name && same(one, other),
        _ => false,
    };
    let differing = pairs.filter(|pair| !alike(pair)).flat_map(|pair| pair.into_iter().flatten());
    differing.map(|(name, _)| name.as_str()).collect()
}

fn same(one: &Value, other: &Value) -> bool {
    let both = |key: &str| Some((one.get(key)?.as_f64()?, other.get(key)?.as_f64()?));
    if let Some((one, other)) = both("ms") {
        return (one - other).abs() <= TOLERANCE_MS * f64::from(process::patience());
    }
    if let Some((one, other)) = both("about") {
        let (small, large) = (one.min(other), one.max(other));
        return large <= small * TOLERANCE_FACTOR;
    }
    one == other
}

fn shown(told: &Told) -> String {
    let saw = told.saw.iter().map(|(name, value)| format!("{name}: {value}"));
    saw.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{FROM_OUTSIDE, MESHED, Told, differing, same};

    #[test]
    fn times_and_amounts_are_compared_with_a_tolerance() {
        assert!(same(&json!({"ms": 3_000}), &json!({"ms": 3_400})));
        assert!(!same(&json!({"ms": 0}), &json!({"ms": 1_000})));
        assert!(same(&json!({"about": 800_000}), &json!({"about": 3_000_000})));
        assert!(!same(&json!({"about": 800_000}), &json!({"about": 45_000_000})));
        assert!(!same(&json!("IN"), &json!("IN|HUP")));
    }

    #[test]
    fn what_only_one_run_told_differs() {
        let told = |saw: &[(&str, i32)]| Told {
            program: "p".into(),
            saw: saw.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect(),
        };
        let (short, long) = (told(&[("a", 1), ("b", 2)]), told(&[("a", 1), ("b", 3), ("c", 4)]));
        assert_eq!(differing(&short, &long).into_iter().collect::<Vec<_>>(), ["b", "c"]);
        assert!(differing(&short, &short).is_empty());
    }

    #[test]
    fn every_difference_has_a_reason() {
        let mut all = MESHED.iter().chain(FROM_OUTSIDE);
        assert!(all.all(|known| !known.what.is_empty() && !known.why.is_empty()));
    }
}
