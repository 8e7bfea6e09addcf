//! From what was seen to policies: who came to which port, and, where all of a client's requests are known, what it requested. A
//! workload of which the agents do not know all, or whose pods nothing tells from others, gets
//! none: one would shut out who was let in.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use ambit_proto::admin::v1::{ObservationsResponse, ObservedDestination};
use serde::Serialize;

use self::requests::{Allowed, Client, Operation};
use crate::cli::moment::Moment;

mod requests;

/// Values that an AuthorizationPolicy may have here, and rules.
const MAX_VALUES: usize = 20_000;
const MAX_RULES: usize = 512;

/// What is suggested, and what has to be said of it.
pub(super) struct Suggested {
    policies: Vec<(Vec<String>, Policy)>,
    /// Workloads without a policy.
    left_out: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Serialize)]
struct Metadata {
    name: String,
    namespace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'static str>,
}

#[derive(Debug, Serialize)]
struct Spec {
    selector: Selector,
    action: &'static str,
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Rule {
    from: Vec<From>,
    to: Vec<To>,
}

#[derive(Debug, Serialize)]
struct From {
    source: Source,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_blocks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct To {
    operation: Operation,
}

/// The pods that one policy is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    namespace: String,
    label: String,
    value: String,
}

/// Who came to one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Sources {
    principals: BTreeSet<String>,
    plaintext: BTreeSet<IpAddr>,
}

/// What is known of a target.
#[derive(Default)]
struct Seen<'a> {
    workloads: BTreeSet<&'a str>,
    /// What each client may do on each port.
    ports: BTreeMap<u32, BTreeMap<Client, Allowed>>,
    /// Who the addresses were.
    clients: BTreeSet<String>,
    incomplete: bool,
}

/// Policies for the workloads of the namespaces asked about.
pub(super) fn suggest(
    agents: &[ObservationsResponse],
    is_about: impl Fn(&str) -> bool,
    dry_run: bool,
) -> Suggested {
    let roots: HashSet<&str> = agents.iter().map(|agent| &*agent.root_namespace).collect();
    let mut suggested = Suggested { policies: Vec::new(), left_out: Vec::new() };
    let mut targets = BTreeMap::<Target, Seen<'_>>::new();
    let all = agents.iter().flat_map(|agent| &agent.destinations);
    for destination in all.filter(|destination| is_about(&destination.namespace)) {
        let ObservedDestination { namespace, workload, label, label_value, .. } = destination;
        if label.is_empty() {
            suggested.leave_out(namespace, workload, "no label app, app.kubernetes.io/name or service.istio.io/canonical-name tells its pods from others");
        } else if roots.contains(&**namespace) {
            suggested.leave_out(
                namespace,
                workload,
                "it is in the root namespace, where a selector is for all namespaces",
            );
        } else {
            let target =
                Target { namespace: namespace.clone(), label: label.clone(), value: label_value.clone() };
            targets.entry(target).or_default().add(destination);
        }
    }
    let mut names = HashSet::new();
    for (target, seen) in targets {
        match seen.rules() {
            Ok(rules) => {
                let name = target.name(&mut names);
                let comments = seen.comments();
                suggested.policies.push((comments, target.policy(name, rules, dry_run)));
            }
            Err(why) => {
                for workload in &seen.workloads {
                    suggested.leave_out(&target.namespace, workload, why);
                }
            }
        }
    }
    suggested
}

impl Suggested {
    fn leave_out(&mut self, namespace: &str, workload: &str, why: &str) {
        let sentence = format!("{namespace}/{workload} has no policy: {why}.");
        if !self.left_out.contains(&sentence) {
            self.left_out.push(sentence);
        }
    }

    pub(super) fn yaml(&self, since: Option<Moment>) -> anyhow::Result<String> {
        let since = since.map(|since| serde_yaml_ng::to_string(&since)).transpose()?.unwrap_or_default();
        let mut out = format!("# Allows what was seen since {}, and nothing else.\n", since.trim());
        for sentence in &self.left_out {
            comment(&mut out, sentence);
        }
        for (comments, policy) in &self.policies {
            out.push_str("---\n");
            for sentence in comments {
                comment(&mut out, sentence);
            }
            out.push_str(&serde_yaml_ng::to_string(policy)?);
        }
        Ok(out)
    }

    pub(super) fn json(&self) -> anyhow::Result<String> {
        let items: Vec<&Policy> = self.policies.iter().map(|(_, policy)| policy).collect();
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items });
        Ok(serde_json::to_string_pretty(&list)? + "\n")
    }
}

/// A comment of one line, whatever is in it.
fn comment(out: &mut String, text: &str) {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    out.push_str("# ");
    out.push_str(&printable);
    out.push('\n');
}

impl<'a> Seen<'a> {
    fn add(&mut self, destination: &'a ObservedDestination) {
        self.workloads.insert(&destination.workload);
        self.incomplete |= destination.incomplete;
        for source in &destination.sources {
            let Some((party, client)) =
                source.party.as_ref().and_then(|party| Some((party, Client::of(party)?)))
            else {
                continue;
            };
            if let (Client::Plaintext(ip), false) = (&client, party.workload.is_empty()) {
                self.clients.insert(format!("{ip} was {}/{}", party.namespace, party.workload));
            }
            let allowed = self.ports.entry(source.port).or_default().entry(client);
            allowed.or_default().add(source);
        }
    }

    /// A rule for all ports that the same come to for the same; why there is none.
    fn rules(&self) -> Result<Vec<Rule>, &'static str> {
        if self.incomplete {
            return Err("more sources have come to it than an agent keeps");
        }
        let mut alike = BTreeMap::<(Sources, &Allowed), Vec<String>>::new();
        for (port, clients) in &self.ports {
            let mut sources = BTreeMap::<&Allowed, Sources>::new();
            for (client, allowed) in clients.iter().filter(|(_, allowed)| !allowed.is_nothing()) {
                sources.entry(allowed).or_default().add(client);
            }
            for (allowed, sources) in sources {
                alike.entry((sources, allowed)).or_default().push(port.to_string());
            }
        }
        let values = |((sources, allowed), ports): (&(Sources, &Allowed), &Vec<String>)| {
            sources.principals.len() + sources.plaintext.len() + 1 + allowed.values(ports.len())
        };
        let total: usize = alike.iter().map(values).sum();
        if alike.is_empty() {
            return Err("nobody has come to it");
        } else if alike.len() > MAX_RULES || total > MAX_VALUES {
            return Err("it would be larger than a policy may be");
        }
        let rule = |((sources, allowed), ports): ((Sources, &Allowed), Vec<String>)| Rule {
            from: sources.from(),
            to: allowed.operations(&ports).into_iter().map(|operation| To { operation }).collect(),
        };
        Ok(alike.into_iter().map(rule).collect())
    }

    fn comments(&self) -> Vec<String> {
        let clients = || self.ports.values().flatten();
        let plaintext = clients().any(|(client, _)| matches!(client, Client::Plaintext(_)));
        let warning = "ipBlocks are those of clients in plaintext: they change when the clients start anew.";
        let folded = clients().any(|(_, allowed)| allowed.has_templates());
        let templates =
            "paths with {*} or {**} stand for many that were requested: see whether they are what you mean.";
        let lines = [plaintext.then_some(warning), folded.then_some(templates)];
        lines.into_iter().flatten().map(str::to_owned).chain(self.clients.iter().cloned()).collect()
    }
}

impl Sources {
    fn add(&mut self, client: &Client) {
        match client {
            Client::Principal(principal) => _ = self.principals.insert(principal.clone()),
            Client::Plaintext(ip) => _ = self.plaintext.insert(*ip),
        }
    }

    fn from(&self) -> Vec<From> {
        let principals =
            Source { principals: self.principals.iter().cloned().collect(), ..Source::default() };
        let plaintext = Source {
            ip_blocks: self.plaintext.iter().map(ToString::to_string).collect(),
            // Not for whoever has an identity and comes from there.
            not_principals: vec!["*"],
            ..Source::default()
        };
        let both =
            [(principals, self.principals.is_empty()), (plaintext, self.plaintext.is_empty())].into_iter();
        both.filter(|(_, empty)| !empty).map(|(source, _)| From { source }).collect()
    }
}

impl Target {
    /// `observed-` and the label's value, as far as that makes a name that nobody has.
    fn name(&self, taken: &mut HashSet<(String, String)>) -> String {
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let value: String = self.value.chars().map(legal).collect();
        let base = format!("observed-{}", value.trim_matches('-'));
        let mut name = base.trim_end_matches('-').to_owned();
        let mut number = 1;
        while !taken.insert((self.namespace.clone(), name.clone())) {
            number += 1;
            name = format!("{base}-{number}");
        }
        name
    }

    fn policy(self, name: String, rules: Vec<Rule>, dry_run: bool) -> Policy {
        let annotations = dry_run.then_some(("istio.io/dry-run", "true")).into_iter().collect();
        Policy {
            api_version: "security.istio.io/v1",
            kind: "AuthorizationPolicy",
            metadata: Metadata { name, namespace: self.namespace, annotations },
            spec: Spec {
                selector: Selector { match_labels: [(self.label, self.value)].into() },
                action: "ALLOW",
                rules,
            },
        }
    }
}

#[cfg(test)]
mod tests;
