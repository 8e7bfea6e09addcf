//! `ambit readiness`: whether mutual TLS can be made STRICT, workload by workload, and who would be shut out; where requests are read.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use ambit_proto::admin::v1 as proto;
use clap::Args;
use serde::Serialize;

use super::{
    moment::{Moment, age, until},
    observed::{Answers, Asked, Format, PartyView, render, within},
    table::{Table, line},
};
use crate::config::Window;

/// How long a client that has joined the mesh must have been seen no more in plaintext.
const SETTLED: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ambit readiness
  ambit readiness --namespace shop --check && kubectl apply -f strict.yaml
  ambit readiness --kubeconfig ~/.kube/config --window 7d
  ambit readiness -o json | jq '.destinations[] | select(.ready | not) | .sources'

A workload is ready if nobody has come to it in plaintext within the window who would still do so: clients that are in the mesh by
now do not count, once they have closed their old connections. An agent knows what it has seen since it started. Below it stands on
which ports requests are read, and for which policy, and what in policies about requests is likely a mistake. See docs/policy.md")]
pub(super) struct ReadinessArgs {
    /// Sources that have not been seen for so long do not count
    #[arg(long, value_name = "TIME", default_value = "24h")]
    window: Window,
    /// Exit with 1 if a workload is not ready
    #[arg(long)]
    check: bool,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// Since when all agents have watched.
    since: Option<Moment>,
    ready: bool,
    destinations: Vec<DestinationView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DestinationView {
    namespace: String,
    workload: String,
    mode: &'static str,
    ready: bool,
    why: String,
    /// Sources that come in plaintext, or did.
    sources: Vec<SourceView>,
    /// What is read of connections, port by port.
    ports: Vec<PortView>,
    /// Likely mistakes in policies about requests, tokens and providers.
    layer7_findings: Vec<String>,
    #[serde(skip)]
    incomplete: bool,
    /// Connections of any kind.
    connections: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceView {
    port: u32,
    #[serde(flatten)]
    party: PartyView,
    connections: u64,
    open: u32,
    first_seen: Option<Moment>,
    last_seen: Option<Moment>,
    state: &'static str,
    /// It would be shut out.
    blocks: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortView {
    port: u32,
    /// What is spoken there: http, tcp, or sniffed.
    reading: String,
    /// For whom requests are read; empty where bytes pass unread.
    read_for: String,
}

pub(super) fn run(args: &ReadinessArgs) -> anyhow::Result<ExitCode> {
    let answers = args.asked.ask()?;
    let is_about = |namespace: &str| args.asked.is_about(namespace);
    let view = View::new(&answers, is_about, args.window.0, SystemTime::now());
    answers.emit(&render(&view, args.output, |now| view.table(now))?)?;
    Ok(if args.check && !view.ready { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl View {
    fn new(answers: &Answers, is_about: impl Fn(&str) -> bool, window: Duration, now: SystemTime) -> Self {
        let mut found = BTreeMap::<(String, String), DestinationView>::new();
        let all = answers.agents.iter().flat_map(|agent| &agent.destinations);
        for destination in all.filter(|destination| is_about(&destination.namespace)) {
            let key = (destination.namespace.clone(), destination.workload.clone());
            let view = found.entry(key).or_insert_with(|| DestinationView::new(destination));
            view.incomplete |= destination.incomplete;
            view.connections += destination.sources.iter().map(|source| source.connections).sum::<u64>();
            for source in destination.sources.iter().filter(|source| is_plaintext(source)) {
                view.add(SourceView::new(source, window, now));
            }
            if destination.pods == 0 && !view.sources.iter().any(|source| source.blocks) {
                found.remove(&(destination.namespace.clone(), destination.workload.clone()));
            }
        }
        let mut destinations: Vec<DestinationView> = found.into_values().collect();
        destinations.iter_mut().for_each(DestinationView::conclude);
        let ready = destinations.iter().all(|destination| destination.ready);
        Self { since: answers.since(), ready, destinations }
    }

    fn table(&self, now: SystemTime) -> String {
        let mut out = String::new();
        let watched = self.since.map(|since| age(since, now)).unwrap_or_default();
        line(&mut out, &format!("Watched for {watched}: who has not come in that time is not known"));
        let mut destinations = Table::new(["WORKLOAD", "MODE", "READY FOR STRICT", "CONNECTIONS", "WHY"]);
        for view in &self.destinations {
            destinations.row([
                view.name(),
                view.mode.to_owned(),
                if view.ready { "yes" } else { "no" }.to_owned(),
                view.connections.to_string(),
                view.why.clone(),
            ]);
        }
        out.push('\n');
        destinations.draw(&mut out);
        let head = [
            "SOURCE",
            "WORKLOAD",
            "PORT",
            "STATE",
            "CONNECTIONS",
            "OPEN",
            "FIRST SEEN",
            "LAST SEEN",
            "WOULD BE SHUT OUT",
        ];
        let mut sources = Table::new(head);
        for (view, source) in
            self.destinations.iter().flat_map(|view| view.sources.iter().map(move |source| (view, source)))
        {
            sources.row([
                source.party.client(),
                view.name(),
                source.port.to_string(),
                source.state.to_owned(),
                source.connections.to_string(),
                source.open.to_string(),
                until(source.first_seen, now),
                until(source.last_seen, now),
                if source.blocks { "yes" } else { "not seen for long" }.to_owned(),
            ]);
        }
        out.push_str("\nIN PLAINTEXT\n");
        sources.draw(&mut out);
        self.layer7(&mut out);
        out
    }

    /// What is read as HTTP, and what does not go with that.
    fn layer7(&self, out: &mut String) {
        let mut ports = Table::new(["WORKLOAD", "PORT", "PROTOCOL", "REQUESTS ARE READ"]);
        for view in &self.destinations {
            for port in &view.ports {
                let protocol = match &*port.reading {
                    "http" => "HTTP",
                    "tcp" => "no HTTP",
                    _ => "no service says it: told by its first bytes",
                };
                let read = match &*port.read_for {
                    "" => "no".to_owned(),
                    reader => format!("for {reader}"),
                };
                ports.row([view.name(), port.port.to_string(), protocol.to_owned(), read]);
            }
        }
        out.push_str("\nREQUESTS\n");
        ports.draw(out);
        let findings: BTreeSet<&String> =
            self.destinations.iter().flat_map(|view| &view.layer7_findings).collect();
        if !findings.is_empty() {
            out.push_str("\nLIKELY MISTAKES\n");
        }
        for finding in findings {
            line(out, finding);
        }
    }
}

/// Whether STRICT would refuse what is let in. What is refused already needs no more thought.
fn is_plaintext(source: &proto::ObservedSource) -> bool {
    let identity = source.party.as_ref().map(|party| &*party.identity).unwrap_or_default();
    identity.is_empty() && (!source.strict || source.open > 0)
}

impl DestinationView {
    fn new(destination: &proto::ObservedDestination) -> Self {
        Self {
            namespace: destination.namespace.clone(),
            workload: destination.workload.clone(),
            mode: if destination.strict { "STRICT" } else { "PERMISSIVE" },
            ready: false,
            why: String::new(),
            sources: Vec::new(),
            ports: destination.ports.iter().map(PortView::from).collect(),
            layer7_findings: destination.layer7_findings.clone(),
            incomplete: false,
            connections: 0,
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.workload)
    }

    /// Adds a source, unless it has joined the mesh since; pods of one workload are one.
    fn add(&mut self, source: Option<SourceView>) {
        let Some(source) = source else { return };
        let same = |known: &&mut SourceView| {
            let named = !source.party.workload.is_empty();
            named && known.port == source.port && known.party.name() == source.party.name()
        };
        match self.sources.iter_mut().find(same) {
            Some(known) => known.merge(source),
            None => self.sources.push(source),
        }
    }

    fn conclude(&mut self) {
        let blocking = self.sources.iter().filter(|source| source.blocks);
        let blocking = blocking.map(|source| source.party.name()).collect::<BTreeSet<_>>().len();
        self.ready = blocking == 0 && !self.incomplete;
        self.why = match blocking {
            0 if self.incomplete => "more sources than an agent keeps: it cannot be told".to_owned(),
            0 if self.connections == 0 => "nobody has come".to_owned(),
            0 if self.mode == "STRICT" => "it is STRICT".to_owned(),
            0 => "all who come are in the mesh".to_owned(),
            1 => "1 source comes in plaintext".to_owned(),
            many => format!("{many} sources come in plaintext"),
        };
    }
}

impl From<&proto::ReadPort> for PortView {
    fn from(port: &proto::ReadPort) -> Self {
        let proto::ReadPort { port, reading, read_for } = port.clone();
        Self { port, reading, read_for }
    }
}

impl SourceView {
    /// `None` of one that is in the mesh by now.
    fn new(source: &proto::ObservedSource, window: Duration, now: SystemTime) -> Option<Self> {
        let last_seen = Moment::of(source.last_seen);
        let state = match source.state() {
            proto::SourceState::InMesh if source.open == 0 && !within(last_seen, Some(SETTLED), now) => {
                return None;
            }
            proto::SourceState::InMesh if source.open > 0 => "in the mesh, old connections are open",
            proto::SourceState::InMesh => "in the mesh since a moment ago",
            proto::SourceState::Outside => "not in the mesh",
            proto::SourceState::Gone => "gone, its namespace is not in the mesh",
            proto::SourceState::Unknown | proto::SourceState::Unspecified => "no pod",
        };
        Some(Self {
            port: source.port,
            party: source.party.clone().into(),
            connections: source.connections,
            open: source.open,
            first_seen: Moment::of(source.first_seen),
            last_seen,
            state,
            blocks: within(last_seen, Some(window), now),
        })
    }

    fn merge(&mut self, other: Self) {
        let later = other.last_seen.map(|moment| moment.0) > self.last_seen.map(|moment| moment.0);
        self.connections += other.connections;
        self.open += other.open;
        self.blocks |= other.blocks;
        let first = [self.first_seen, other.first_seen].into_iter().flatten().map(|moment| moment.0).min();
        self.first_seen = first.map(Moment);
        if later {
            self.last_seen = other.last_seen;
            (self.party, self.state) = (other.party, other.state);
        }
    }
}
