//! What keeps this node's pods from talking, from what the rooms say of themselves: for `ambit status`, events and metrics.
//!
//! Promises that a pod that can make no connection, and take none, stands here with the reason and with what to do about it.
//! Bounded, and told once for all that have the same trouble. What single connections are refused for is not its business.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use ambit_core::model::SpiffeId;
use ambit_proto::admin::v1 as proto;

use super::node::PodStatus;
use crate::{
    identity::IdentityStatus,
    instance::Readiness,
    reports::{Hindrance, without_numbers},
};

/// Pods and identities that one problem names; the others are counted.
const NAMED: usize = 3;
/// Problems of each sort.
const MOST: usize = 50;

/// How identities stand, by name.
pub(super) type Identities<'a> = HashMap<&'a SpiffeId, &'a IdentityStatus>;

/// Identities by their names.
pub(super) fn by_name(identities: &[IdentityStatus]) -> Identities<'_> {
    identities.iter().map(|identity| (&identity.id, identity)).collect()
}

/// What keeps one pod from talking at `now`.
pub(super) fn hindrance(pod: &PodStatus, identities: &Identities<'_>, now: SystemTime) -> Option<Hindrance> {
    if let Err(error) = &pod.state {
        return Some(Hindrance::Enrolment(error.clone()));
    }
    let identity = identities.get(&pod.workload.identity)?;
    identity.cut_off(now).map(Hindrance::Certificate)
}

/// All that an operator has to see to on this node, beside what is wrong with objects.
pub(super) fn problems(
    pods: &[PodStatus],
    identities: &[IdentityStatus],
    readiness: &Readiness,
    now: SystemTime,
) -> Vec<proto::Problem> {
    let problem = |file: &str, object: String, message: String| proto::Problem {
        file: file.to_owned(),
        object,
        field: String::new(),
        message,
    };
    let amiss = readiness.amiss().into_iter().map(|(name, why)| problem(name, String::new(), why));
    let failed = pods.iter().filter_map(|pod| {
        let error = pod.state.as_ref().err()?;
        Some(problem("pods", format!("Pod {}", pod.workload.name), format!("cannot be enrolled: {error}")))
    });
    let mut problems: Vec<_> = amiss.collect();
    capped(&mut problems, failed.collect(), "pods");
    let troubled = troubled(identities, now).into_values().map(|trouble| {
        let mine = |pod: &&PodStatus| trouble.ids.contains(&pod.workload.identity);
        let mine = pods.iter().filter(mine).map(|pod| pod.workload.name.to_string());
        let ids = trouble.ids.iter().map(ToString::to_string);
        let message = match trouble.cut_off {
            true => format!("{}. Refused until then: the connections of {}", trouble.text, named(mine)),
            false => trouble.text,
        };
        problem("certificates", named(ids), message)
    });
    capped(&mut problems, troubled.collect(), "certificates");
    problems
}

/// Identities with the same trouble.
struct Trouble<'a> {
    text: String,
    cut_off: bool,
    ids: BTreeSet<&'a SpiffeId>,
}

/// Those that are cut off first.
fn troubled(identities: &[IdentityStatus], now: SystemTime) -> BTreeMap<(bool, String), Trouble<'_>> {
    let mut found = BTreeMap::new();
    for identity in identities {
        let cut_off = identity.cut_off(now);
        let is_cut_off = cut_off.is_some();
        let Some(text) =
            cut_off.map(|why| format!("no certificate: {why}")).or_else(|| identity.endangered())
        else {
            continue;
        };
        // The same trouble, whatever name of its own is in the text.
        let kind = without_numbers(&text.replace(&identity.id.to_string(), ""));
        let trouble = found.entry((!is_cut_off, kind)).or_insert_with(|| Trouble {
            text,
            cut_off: is_cut_off,
            ids: BTreeSet::new(),
        });
        trouble.ids.insert(&identity.id);
    }
    found
}

fn named(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    match (names.is_empty(), more) {
        (true, _) => "no pod at this moment".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

fn capped(problems: &mut Vec<proto::Problem>, mut found: Vec<proto::Problem>, file: &str) {
    let more = found.len().saturating_sub(MOST);
    found.truncate(MOST);
    problems.append(&mut found);
    if more > 0 {
        let message = format!("{more} more of this sort");
        problems.push(proto::Problem { file: file.to_owned(), message, ..proto::Problem::default() });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ambit_core::model::{Labels, ObjectName, Workload};
    use ambit_ebpf_common::Counters;

    use super::*;
    use crate::identity::IdentityState;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn pod(name: &str, state: Result<u64, String>) -> PodStatus {
        let workload = Workload {
            name: ObjectName::new("shop", name),
            uid: name.into(),
            identity: format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap(),
            node: "n1".into(),
            ips: Vec::new(),
            labels: Labels::new(),
            named_ports: BTreeMap::new(),
            probe_ports: Vec::new(),
            host_network: false,
            enrolled: true,
            netns: None,
            http_telemetry: false,
        };
        PodStatus {
            workload: Arc::new(workload),
            state,
            found_by: None,
            counters: Counters::default(),
            captures_dns: false,
        }
    }

    fn identity(name: &str, state: IdentityState, error: Option<&str>) -> IdentityStatus {
        IdentityStatus {
            id: format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap(),
            serial: None,
            not_before: None,
            not_after: None,
            next_renewal: None,
            last_error: error.map(str::to_owned),
            state,
            late: state == IdentityState::Expired,
            wanted_since: NOW,
            svid: None,
        }
    }

    #[test]
    fn each_pod_that_cannot_talk_says_why() {
        let identities = [
            identity("good", IdentityState::Valid, None),
            identity("refused", IdentityState::Pending, Some("the issuer refuses: no")),
        ];
        let identities = by_name(&identities);
        let of = |pod: PodStatus| hindrance(&pod, &identities, NOW);
        assert_eq!(of(pod("good", Ok(1))), None);
        assert_eq!(of(pod("good", Err("full".into()))), Some(Hindrance::Enrolment("full".into())));
        let refused = of(pod("refused", Ok(1)));
        assert_eq!(refused, Some(Hindrance::Certificate("the issuer refuses: no".into())));
    }

    #[test]
    fn the_same_trouble_is_told_once_and_names_the_pods() {
        let mut pods = vec![pod("broken", Err("no namespace".into()))];
        let mut identities = vec![identity("good", IdentityState::Valid, None)];
        for number in 0..5 {
            let name = format!("p{number}");
            pods.push(pod(&name, Ok(number)));
            let error =
                format!("the issuer refuses: none for spiffe://td/ns/shop/sa/{name} after {number} s");
            identities.push(identity(&name, IdentityState::Pending, Some(&error)));
        }
        identities.push(identity("old", IdentityState::Expired, Some("away")));
        let readiness = Readiness::default();
        let _gate = readiness.gate_because("capture", "a map is full".into());
        let found = problems(&pods, &identities, &readiness, NOW);
        let told: Vec<_> = found.iter().map(|one| (&*one.file, &*one.object, &*one.message)).collect();
        assert_eq!(told.len(), 4, "{told:#?}");
        assert_eq!(told[0], ("capture", "", "a map is full"));
        assert_eq!(told[1], ("pods", "Pod shop/broken", "cannot be enrolled: no namespace"));
        let (expired, refused) = (told[2], told[3]);
        assert!(expired.2.contains("expired: away"), "{told:#?}");
        assert!(
            refused.1.ends_with("and 2 more") && refused.2.contains("shop/p0, shop/p1, shop/p2"),
            "{told:#?}"
        );
    }
}
