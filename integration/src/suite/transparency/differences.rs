//! What programs may see differently in the mesh, and why; and the comparison.

use std::{collections::BTreeSet, fmt::Write as _};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::programs::{Told, Way};

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
    "the mark of the server's connection keeps its answers inside the pod, and is not to be changed";
const LOCAL: &str = "the connection to the agent is a local one";

/// To be mended: `connect` is answered before the agent knows whether the destination answers.
const ANSWERED_EARLY: &str = "connect is answered before the destination is asked";
/// To be mended: all captured connects of a pod go to one address and port.
const ONE_DESTINATION: &str = "captured connections share one destination";
/// To be mended: the agent watches one direction only, and its buffers are beside those of the sockets.
const ONE_WAY: &str = "the relay watches one direction, and has buffers of its own";
/// To be mended: urgent data is dropped.
const NOT_URGENT: &str = "urgent data is not carried";
/// To be mended: an application's keepalive and time-outs end at its own agent.
const ENDS_AT_THE_AGENT: &str = "the agent answers, whoever else is gone";

/// What programs between two pods in the mesh see differently.
const MESHED: &[Difference] = &[
    // To stay.
    differs("connecting::the_server_sees_the_port_of_getsockname", &["ports agree"], PORT_OF_ITS_OWN),
    differs(
        "accepting::on_a_port_whose_client_closed_first",
        &["bind"],
        "tunnels that wait to be used again are on the port; SO_REUSEADDR, which servers set, passes them",
    ),
    differs("options::mark", &["before", "the client reads", "ended"], MARKED),
    differs("options::segment_size", &["the client's", "the server's"], LOCAL),
    differs("options::path_mtu", &["the client's", "the server's"], LOCAL),
    differs(
        "options::in_the_kernels_table",
        &["the client's connection"],
        "ss and netstat show the agent as the peer; getpeername does not",
    ),
    // To be mended.
    differs("connecting::one_bound_port_to_two_servers", &["connect"], ONE_DESTINATION),
    differs("connecting::ports_are_shared_among_servers", &["four ports"], ONE_DESTINATION),
    differs("connecting::refused", &["connect", "getpeername", "state"], ANSWERED_EARLY),
    differs("connecting::refused_over_ipv6", &["connect"], ANSWERED_EARLY),
    differs("connecting::refused_without_blocking", &["poll", "SO_ERROR"], ANSWERED_EARLY),
    differs("connecting::refused_then_let_in", &["first", "second"], ANSWERED_EARLY),
    differs("connecting::refused_right_after_others_were_let_in", &["refused"], ANSWERED_EARLY),
    differs("connecting::refused_at_port_zero", &["connect"], ANSWERED_EARLY),
    differs("connecting::nobody_answers", &["poll", "again", "getpeername", "state"], ANSWERED_EARLY),
    differs("connecting::nobody_answers_two_syns", &["connect", "took"], ANSWERED_EARLY),
    differs("connecting::nobody_answers_within_the_user_timeout", &["connect", "took"], ANSWERED_EARLY),
    differs("connecting::nobody_answers_within_the_send_timeout", &["connect"], ANSWERED_EARLY),
    differs("connecting::no_way_there", &["connect", "took"], ANSWERED_EARLY),
    differs("connecting::a_backlog_that_is_full", &["connected at first"], ANSWERED_EARLY),
    differs("connecting::fast_open_to_nobody", &["sendto"], ANSWERED_EARLY),
    differs("accepting::on_loopback_alone", &["connect"], ANSWERED_EARLY),
    differs("accepting::on_one_address_of_two_families", &["IPv4"], ANSWERED_EARLY),
    differs("polling::while_connecting", &["poll"], ANSWERED_EARLY),
    differs("polling::edges_of_a_refusal", &["refused", "SO_ERROR"], ANSWERED_EARLY),
    differs("severed::a_connect_after_others", &["connect", "took"], ANSWERED_EARLY),
    differs("severed::a_connect_that_is_in_time_after_all", &["at first"], ANSWERED_EARLY),
    differs("data::urgent_in_line", &["poll", "up to the mark", "at the mark", "on"], NOT_URGENT),
    differs("data::urgent_apart", &["poll", "select", "urgent", "read"], NOT_URGENT),
    differs("data::urgent_from_the_server", &["poll", "urgent"], NOT_URGENT),
    differs("data::a_reader_that_sleeps", &["taken"], ONE_WAY),
    differs("data::a_client_that_does_not_read", &["taken"], ONE_WAY),
    differs("endings::a_client_that_closes", &["poll", "second send"], ONE_WAY),
    differs("endings::a_server_that_closes", &["poll", "second send"], ONE_WAY),
    differs("endings::a_reset_of_a_full_connection", &["poll", "took"], ONE_WAY),
    differs("endings::a_reset_after_their_fin", &["poll", "send"], ONE_WAY),
    differs("severed::a_client_with_keepalive", &["recv", "took", "ended"], ENDS_AT_THE_AGENT),
    differs("severed::a_server_with_keepalive", &["recv", "took", "ended"], ENDS_AT_THE_AGENT),
    differs("severed::a_user_timeout", &["recv", "took", "ended"], ENDS_AT_THE_AGENT),
];

/// What programs see differently whose client is not in the mesh.
const FROM_OUTSIDE: &[Difference] = &[
    // To stay.
    differs("connecting::the_server_sees_the_port_of_getsockname", &["ports agree"], PORT_OF_ITS_OWN),
    differs("options::mark", &["before", "the client reads", "ended"], MARKED),
    differs("options::segment_size", &["the server's"], LOCAL),
    differs("options::path_mtu", &["the server's"], LOCAL),
    differs("options::signatures", &["connected"], "the agent does not know the keys of TCP-MD5 and TCP-AO"),
    // To be mended.
    differs("connecting::refused", &["connect", "getpeername", "state"], ANSWERED_EARLY),
    differs("connecting::refused_over_ipv6", &["connect"], ANSWERED_EARLY),
    differs("connecting::refused_without_blocking", &["poll", "SO_ERROR"], ANSWERED_EARLY),
    differs("connecting::refused_then_let_in", REFUSED_THEN_LET_IN, ANSWERED_EARLY),
    differs("connecting::refused_right_after_others_were_let_in", &["refused"], ANSWERED_EARLY),
    differs("connecting::refused_at_port_zero", &["connect"], ANSWERED_EARLY),
    differs("connecting::a_backlog_that_is_full", &["connected at first"], ANSWERED_EARLY),
    differs("connecting::fast_open_to_nobody", &["sendto"], ANSWERED_EARLY),
    differs("accepting::on_loopback_alone", &["connect"], ANSWERED_EARLY),
    differs("accepting::on_one_address_of_two_families", &["IPv4"], ANSWERED_EARLY),
    differs("polling::edges_of_a_refusal", &["refused", "SO_ERROR"], ANSWERED_EARLY),
    differs("data::urgent_in_line", &["poll", "at the mark", "on"], NOT_URGENT),
    differs("data::urgent_apart", &["poll", "select", "urgent", "read"], NOT_URGENT),
    differs("data::urgent_from_the_server", &["poll", "urgent"], NOT_URGENT),
    differs("data::a_reader_that_sleeps", &["taken"], ONE_WAY),
    differs("data::a_client_that_does_not_read", &["taken"], ONE_WAY),
    differs("endings::a_client_that_closes", &["poll", "second send"], ONE_WAY),
    differs("endings::a_server_that_closes", &["poll", "second send"], ONE_WAY),
    differs("endings::a_reset_of_a_full_connection", &["poll", "took"], ONE_WAY),
    differs("endings::a_reset_after_their_fin", &["poll", "send"], ONE_WAY),
    differs("severed::a_server_with_keepalive", &["recv", "took", "ended"], ENDS_AT_THE_AGENT),
];

const REFUSED_THEN_LET_IN: &[&str] = &[
    "first",
    "second",
    "the server sees",
    "the server is",
    "getpeername",
    "getsockname",
    "the peer's port is the one dialled",
    "ended",
];

/// Clients that see something else, and why.
pub(super) const EXPECTED_OF_CLIENTS: &[(&str, &str)] = &[
    ("curl that is refused", ANSWERED_EARLY),
    ("curl without an answer", ANSWERED_EARLY),
    ("curl by a name of both families", ANSWERED_EARLY),
    ("nc -z that is refused", ANSWERED_EARLY),
    ("nc -z without an answer", ANSWERED_EARLY),
    ("python", ANSWERED_EARLY),
    ("node", ANSWERED_EARLY),
    ("Go", ANSWERED_EARLY),
    ("redis-cli that is refused", ANSWERED_EARLY),
    ("psql by a name of both families", ANSWERED_EARLY),
    ("psql that is refused", ANSWERED_EARLY),
];

const fn differs(program: &'static str, what: &'static [&'static str], why: &'static str) -> Difference {
    Difference { program, what, why }
}

/// By how much times may differ: far less than a retransmission, more than a busy machine is late.
const TOLERANCE_MS: f64 = 600.0;
/// How many times larger one amount may be than the other, beside what small ones differ by.
const TOLERANCE_FACTOR: f64 = 4.0;
const TOLERANCE_BYTES: f64 = 262_144.0;

/// Demands that all programs saw the same, but for what is listed, and that what is listed differs; answers with a line about
/// it.
pub(super) fn judge(topic: &str, way: Way, plain: &[Told], meshed: &[Told]) -> Result<String> {
    let differences = match way {
        Way::Plain => &[],
        Way::Meshed => MESHED,
        Way::FromOutside => FROM_OUTSIDE,
    };
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
        return (one - other).abs() <= TOLERANCE_MS;
    }
    if let Some((one, other)) = both("about") {
        let (small, large) = (one.min(other), one.max(other));
        return large <= small * TOLERANCE_FACTOR + TOLERANCE_BYTES;
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
