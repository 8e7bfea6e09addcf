//! `ambit denials`: the connections and requests that agents have decided against, and why.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use ambit_proto::admin::v1 as proto;
use clap::Args;
use serde::Serialize;

use super::{
    moment::{Moment, until},
    observed::{Answers, Asked, Format, PartyView, render, within},
    output,
    table::{Table, line},
};
use crate::config::Window;

/// How often an agent is asked that is followed.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit denials
  ambit denials --namespace shop --since 10m
  ambit denials --follow
  ambit denials -o json | jq '.[] | select(.policy == \"shop/deny-all\")'
  ambit denials --kubeconfig ~/.kube/config

An agent remembers up to 2048 different denials for a week, since it started. Reasons and what to do about them:
docs/troubleshooting.md")]
pub(super) struct DenialsArgs {
    /// Only what was seen within this time, such as 10m or 24h
    #[arg(long, value_name = "TIME")]
    since: Option<Window>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Go on and show each denial as it comes, a line each; with -o json an object a line
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    asked: Asked,
}

/// A connection that was refused or cut, or a request, and others like it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DenialView {
    #[serde(skip_serializing_if = "String::is_empty")]
    node: String,
    direction: &'static str,
    by_peer: bool,
    source: PartyView,
    destination: PartyView,
    port: u32,
    code: u32,
    reason: String,
    policy: String,
    rule: String,
    field: String,
    text: String,
    /// Of the request that was refused last; empty where connections were refused.
    method: String,
    path: String,
    count: u64,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
}

pub(super) fn run(args: &DenialsArgs) -> anyhow::Result<()> {
    if args.follow {
        return follow(args);
    }
    let answers = args.asked.ask()?;
    let views = args.views(&answers, SystemTime::now());
    let several = answers.agents.len() > 1;
    answers.emit(&render(&views, args.output, |now| {
        let mut out = String::new();
        table(&views, several, now).draw(&mut out);
        out
    })?)
}

impl DenialsArgs {
    fn views(&self, answers: &Answers, now: SystemTime) -> Vec<DenialView> {
        let denials = answers.agents.iter().flat_map(|agent| {
            agent.denials.iter().map(|denial| DenialView::new(denial.clone(), &agent.node))
        });
        let about = |view: &DenialView| {
            [&view.source, &view.destination].into_iter().any(|party| self.asked.is_about(&party.namespace))
                && within(view.last_seen, self.since.map(|since| since.0), now)
        };
        let mut views: Vec<DenialView> = denials.filter(about).collect();
        views.sort_by_key(|view| std::cmp::Reverse(view.last_seen.map(|moment| moment.0)));
        views
    }
}

/// Shows what has grown since it was last shown, until nobody reads it. An agent that is away for a while is waited for.
fn follow(args: &DenialsArgs) -> anyhow::Result<()> {
    let mut shown: Option<HashMap<String, u64>> = None;
    let mut missing = None;
    loop {
        match args.asked.ask() {
            Ok(answers) => {
                let (text, counts) = args.news(&answers, shown.as_ref())?;
                if !output::stream(&text)? {
                    return Ok(());
                }
                shown = Some(counts);
                tell_once(&mut missing, answers.silent());
            }
            Err(error) if shown.is_none() => return Err(error),
            Err(error) => tell_once(&mut missing, Some(format!("{error:#}"))),
        }
        std::thread::sleep(EVERY);
    }
}

/// Says what is missing when that changes.
fn tell_once(told: &mut Option<String>, missing: Option<String>) {
    if *told != missing {
        if let Some(missing) = &missing {
            output::complain(&format!("warning: {missing}\n"));
        }
        *told = missing;
    }
}

impl DenialsArgs {
    /// Lines for what has grown, and how often each has been seen by now.
    fn news(
        &self,
        answers: &Answers,
        shown: Option<&HashMap<String, u64>>,
    ) -> anyhow::Result<(String, HashMap<String, u64>)> {
        let mut counts = HashMap::new();
        let mut out = String::new();
        for view in self.views(answers, SystemTime::now()).iter().rev() {
            let before = shown.and_then(|shown| shown.get(&view.key()).copied()).unwrap_or(0);
            counts.insert(view.key(), view.count);
            // Fewer than before: the agent has started anew, and they are all new.
            let new = if view.count < before { view.count } else { view.count - before };
            // What was there when this began is not news, unless it was asked for.
            if new > 0 && (shown.is_some() || self.since.is_some()) {
                out.push_str(&view.line(self.output, new)?);
            }
        }
        Ok((out, counts))
    }
}

impl DenialView {
    pub(super) fn new(denial: proto::Denial, node: &str) -> Self {
        let direction = match denial.direction() {
            proto::Direction::Unspecified => "unknown",
            proto::Direction::Outbound => "outbound",
            proto::Direction::Inbound => "inbound",
        };
        Self {
            node: node.to_owned(),
            direction,
            by_peer: denial.by_peer,
            source: denial.source.into(),
            destination: denial.destination.into(),
            port: denial.port,
            code: denial.code,
            reason: denial.reason,
            policy: denial.policy,
            rule: denial.rule,
            field: denial.field,
            text: denial.text,
            method: denial.method,
            path: denial.path,
            count: denial.count,
            first_seen: Moment::of(denial.first_seen),
            last_seen: Moment::of(denial.last_seen),
        }
    }

    /// What stays the same while the count grows.
    fn key(&self) -> String {
        let Self { node, direction, by_peer, source, destination, port, reason, policy, rule, .. } = self;
        format!(
            "{node} {direction} {by_peer} {} {} {} {port} {reason} {policy} {rule}",
            source.name(),
            source.identity,
            destination.name()
        )
    }

    fn why(&self) -> String {
        let why = match (&*self.field, &*self.policy) {
            ("", "") => self.text.clone(),
            ("", _) => String::new(),
            (field, _) => format!("{field} does not hold"),
        };
        match (self.request(), why.is_empty()) {
            (None, _) => why,
            (Some(request), true) => format!("last {request}"),
            (Some(request), false) => format!("{why}; last {request}"),
        }
    }

    /// The request that was refused last.
    fn request(&self) -> Option<String> {
        let Self { method, path, .. } = self;
        (!method.is_empty()).then(|| format!("{method} {path}"))
    }

    fn line(&self, format: Format, new: u64) -> anyhow::Result<String> {
        if format != Format::Table {
            return Ok(serde_json::to_string(self)? + "\n");
        }
        let Self { source, destination, port, direction, reason, text, node, .. } = self;
        let mut out = String::new();
        let times = if new > 1 { format!(" ({new} times)") } else { String::new() };
        let request = self.request().map(|request| format!(" {request}")).unwrap_or_default();
        let parties = format!("{} -> {}:{port}{request}", source.client(), destination.name());
        line(&mut out, &format!("{node} {direction} {parties} {reason}: {text}{times}"));
        Ok(out)
    }
}

/// For people; with a column for the node where there are `several`.
pub(super) fn table(views: &[DenialView], several: bool, now: SystemTime) -> Table {
    let head = [
        "LAST SEEN",
        "COUNT",
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "REASON",
        "POLICY",
        "RULE",
        "WHY",
        "SAID BY",
    ];
    let mut table = Table::new(head);
    for view in views {
        let agent = if view.by_peer { "the peer's agent" } else { "this agent" };
        table.row([
            until(view.last_seen, now),
            view.count.to_string(),
            view.direction.to_owned(),
            view.source.client(),
            format!("{}:{}", view.destination.name(), view.port),
            format!("{} ({})", view.reason, view.code),
            view.policy.clone(),
            view.rule.clone(),
            view.why(),
            if several { format!("{agent}, {}", view.node) } else { agent.to_owned() },
        ]);
    }
    table
}
