//! `ambit rehearsal`: what policies that decide nothing (dry-run, AUDIT) would have changed.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use ambit_proto::admin::v1 as proto;
use clap::Args;
use serde::Serialize;

use super::{
    moment::{Moment, until},
    observed::{Answers, Asked, Format, PartyView, render, within},
    table::{Table, line},
};
use crate::config::Window;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit rehearsal
  ambit rehearsal --namespace shop --since 1h
  ambit rehearsal -o json | jq '.connections[] | select(.outcome == \"would_refuse\")'
  ambit rehearsal --kubeconfig ~/.kube/config

A policy is rehearsed with the annotation istio.io/dry-run: \"true\", or as an AUDIT policy. All dry-run policies for a pod are
tried together, as if all of them were in force. See docs/policy.md")]
pub(super) struct RehearsalArgs {
    /// Only what was seen within this time, such as 10m or 24h
    #[arg(long, value_name = "TIME")]
    since: Option<Window>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    since: Option<Moment>,
    policies: Vec<PolicyView>,
    connections: Vec<ConnectionView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PolicyView {
    policy: String,
    action: String,
    judged: u64,
    would_refuse: u64,
    would_admit: u64,
    matched: u64,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionView {
    node: String,
    outcome: &'static str,
    policy: String,
    rule: String,
    field: String,
    source: PartyView,
    destination: PartyView,
    port: u32,
    count: u64,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
}

pub(super) fn run(args: &RehearsalArgs) -> anyhow::Result<()> {
    let answers = args.asked.ask()?;
    let window = args.since.map(|since| since.0);
    let view = View::new(&answers, |namespace| args.asked.is_about(namespace), window, SystemTime::now());
    answers.emit(&render(&view, args.output, |now| view.table(now))?)
}

impl View {
    fn new(
        answers: &Answers,
        is_about: impl Fn(&str) -> bool,
        window: Option<Duration>,
        now: SystemTime,
    ) -> Self {
        let mut policies = BTreeMap::<(String, String), PolicyView>::new();
        let mut connections = Vec::new();
        for agent in &answers.agents {
            for policy in &agent.rehearsed_policies {
                let key = (policy.policy.clone(), policy.action.clone());
                let view = PolicyView::from(policy.clone());
                match policies.get_mut(&key) {
                    Some(sum) => sum.add(&view),
                    None => drop(policies.insert(key, view)),
                }
            }
            let seen = agent.rehearsed_connections.iter().cloned();
            connections.extend(seen.map(|connection| ConnectionView::new(connection, &agent.node)));
        }
        let of_policy = |policy: &str| is_about(policy.split('/').next().unwrap_or_default());
        connections.retain(|view: &ConnectionView| {
            (of_policy(&view.policy) || is_about(&view.destination.namespace))
                && within(view.last_seen, window, now)
        });
        connections.sort_by_key(|view| std::cmp::Reverse(view.last_seen.map(|moment| moment.0)));
        let shown = |view: &PolicyView| {
            let concerned = connections.iter().any(|connection| connection.policy == view.policy);
            concerned || (of_policy(&view.policy) && within(view.last_seen, window, now))
        };
        let policies = policies.into_values().filter(shown).collect();
        Self { since: answers.since(), policies, connections }
    }

    fn table(&self, now: SystemTime) -> String {
        let mut out = String::new();
        line(&mut out, &format!("Watched since {}", until(self.since, now)));
        let mut policies = Table::new([
            "POLICY",
            "ACTION",
            "JUDGED",
            "WOULD REFUSE",
            "WOULD ADMIT",
            "MATCHED",
            "LAST JUDGED",
        ]);
        for policy in &self.policies {
            policies.row([
                policy.policy.clone(),
                policy.action.clone(),
                policy.judged.to_string(),
                policy.would_refuse.to_string(),
                policy.would_admit.to_string(),
                policy.matched.to_string(),
                until(policy.last_seen, now),
            ]);
        }
        out.push_str("\nPOLICIES THAT DECIDE NOTHING\n");
        policies.draw(&mut out);
        let head = ["OUTCOME", "SOURCE", "DESTINATION", "POLICY", "RULE", "WHY", "COUNT", "LAST SEEN"];
        let mut connections = Table::new(head);
        for view in &self.connections {
            let why =
                if view.field.is_empty() { String::new() } else { format!("{} does not hold", view.field) };
            connections.row([
                view.outcome.to_owned(),
                view.source.client(),
                format!("{}:{}", view.destination.name(), view.port),
                view.policy.clone(),
                view.rule.clone(),
                why,
                view.count.to_string(),
                until(view.last_seen, now),
            ]);
        }
        out.push_str("\nCONNECTIONS\n");
        connections.draw(&mut out);
        out
    }
}

impl From<proto::RehearsedPolicy> for PolicyView {
    fn from(policy: proto::RehearsedPolicy) -> Self {
        Self {
            policy: policy.policy,
            action: policy.action,
            judged: policy.judged,
            would_refuse: policy.would_refuse,
            would_admit: policy.would_admit,
            matched: policy.matched,
            first_seen: Moment::of(policy.first_seen),
            last_seen: Moment::of(policy.last_seen),
        }
    }
}

impl PolicyView {
    fn add(&mut self, other: &Self) {
        self.judged += other.judged;
        self.would_refuse += other.would_refuse;
        self.would_admit += other.would_admit;
        self.matched += other.matched;
        let moments = |own: Option<Moment>, other: Option<Moment>| {
            [own, other].into_iter().flatten().map(|moment| moment.0)
        };
        self.first_seen = moments(self.first_seen, other.first_seen).min().map(Moment);
        self.last_seen = moments(self.last_seen, other.last_seen).max().map(Moment);
    }
}

impl ConnectionView {
    fn new(connection: proto::RehearsedConnection, node: &str) -> Self {
        let outcome = match connection.outcome() {
            proto::RehearsedOutcome::Unspecified => "unknown",
            proto::RehearsedOutcome::WouldRefuse => "would_refuse",
            proto::RehearsedOutcome::WouldAdmit => "would_admit",
            proto::RehearsedOutcome::Matched => "matched",
        };
        Self {
            node: node.to_owned(),
            outcome,
            policy: connection.policy,
            rule: connection.rule,
            field: connection.field,
            source: connection.source.into(),
            destination: connection.destination.into(),
            port: connection.port,
            count: connection.count,
            first_seen: Moment::of(connection.first_seen),
            last_seen: Moment::of(connection.last_seen),
        }
    }
}
