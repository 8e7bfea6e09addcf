//! What the commands share that show what agents have observed: whom they ask, and the words of the answers.

use std::time::SystemTime;

use ambit_proto::admin::v1::{self as proto, ObservationsRequest, ObservationsResponse};
use anyhow::bail;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{ask::put_in_time, moment::Moment, output, remote::Remote};
use crate::config::{DEFAULT_RUN_DIR, Location};

/// Whom to ask, and about what.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// The folder of the agent's status socket
    #[arg(long, env = "AMBIT_RUN_DIR", hide_env_values = true, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: Location,
    /// The agent that called itself so, not its predecessor or successor
    #[arg(long, env = "AMBIT_INSTANCE", hide_env_values = true, value_name = "NAME")]
    instance: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
    Yaml,
}

/// What the agents asked have said.
pub(super) struct Answers {
    pub(super) agents: Vec<ObservationsResponse>,
    silent: Vec<String>,
}

impl Asked {
    pub(super) fn ask(&self) -> anyhow::Result<Answers> {
        let question = ObservationsRequest {};
        if !self.remote.wanted() {
            let agents = vec![put_in_time(&self.run_dir.0, self.instance.as_deref(), question)?];
            return Ok(Answers { agents, silent: Vec::new() });
        }
        let mut answers = Answers { agents: Vec::new(), silent: Vec::new() };
        for answer in self.remote.put(&question)? {
            match answer.status {
                Ok(agent) => answers.agents.push(agent),
                Err(error) => answers.silent.push(format!("{}: {error:#}", answer.node)),
            }
        }
        Ok(answers)
    }

    /// Whether this namespace is asked about.
    pub(super) fn is_about(&self, namespace: &str) -> bool {
        self.remote.namespace().is_none_or(|asked| asked == namespace)
    }
}

impl Answers {
    #[cfg(test)]
    pub(super) fn of(agents: Vec<ObservationsResponse>) -> Self {
        Self { agents, silent: Vec::new() }
    }

    /// Since when all of them have watched.
    pub(super) fn since(&self) -> Option<Moment> {
        let since = self.agents.iter().filter_map(|agent| Moment::of(agent.since));
        since.max_by_key(|moment| moment.0)
    }

    /// Which agents did not answer, if there are any.
    pub(super) fn silent(&self) -> Option<String> {
        let silent = || format!("this is not all: agents that did not answer: {}", self.silent.join("; "));
        (!self.silent.is_empty()).then(silent)
    }

    /// Writes what was made of the answers; agents that did not answer are an error.
    pub(super) fn emit(&self, text: &str) -> anyhow::Result<()> {
        output::emit(text)?;
        self.silent().map_or(Ok(()), |silent| bail!(silent))
    }
}

/// One end of connections.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PartyView {
    pub(super) namespace: String,
    pub(super) workload: String,
    pub(super) pod: String,
    pub(super) identity: String,
    pub(super) ip: String,
}

impl From<Option<proto::Party>> for PartyView {
    fn from(party: Option<proto::Party>) -> Self {
        let proto::Party { namespace, workload, pod, identity, ip } = party.unwrap_or_default();
        Self { namespace, workload, pod, identity, ip }
    }
}

impl PartyView {
    /// The workload, else the identity, else the address.
    pub(super) fn name(&self) -> String {
        match (&*self.workload, &*self.identity) {
            ("", "") => self.ip.clone(),
            ("", identity) => identity.to_owned(),
            (workload, _) => format!("{}/{workload}", self.namespace),
        }
    }

    /// The workload of a client with what it is known by.
    pub(super) fn client(&self) -> String {
        match (&*self.workload, &*self.identity) {
            ("", _) => self.name(),
            (_, "") => format!("{} ({})", self.name(), self.ip),
            (_, identity) => {
                format!("{} ({})", self.name(), identity.strip_prefix("spiffe://").unwrap_or(identity))
            }
        }
    }
}

/// `view` for programs, or `table` for people.
pub(super) fn render<T: Serialize>(
    view: &T,
    format: Format,
    table: impl FnOnce(SystemTime) -> String,
) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table(SystemTime::now()),
        Format::Json => serde_json::to_string_pretty(view)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(view)?,
    })
}

/// Whether a moment lies no further back than `window`; without one, always.
pub(super) fn within(moment: Option<Moment>, window: Option<std::time::Duration>, now: SystemTime) -> bool {
    let Some(window) = window else { return true };
    moment.is_some_and(|Moment(moment)| {
        now.duration_since(moment).is_ok_and(|past| past <= window) || moment > now
    })
}
