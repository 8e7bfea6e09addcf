//! Questions about policies, as they are asked of an agent or of a folder of manifests: from words to the answers of
//! `ambit.policy.v1`.
//!
//! Promises the same answer from both. Judging is left to the core, asking and showing to others.

mod answer;

use std::{collections::BTreeMap, net::IpAddr};

use ambit_core::{
    diagnosis::{self, Cluster, Level, Question, Reference, Unanswerable},
    model::ObjectName,
};
use ambit_proto::policy::v1 as proto;

use crate::discovery::{Key, Origin, World};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unable {
    /// It cannot be understood.
    #[error("{0}")]
    Misasked(String),
    /// What is asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// Not everything is known yet.
    #[error("the agent has not yet read all objects: ask again in a moment")]
    NotReady,
}

/// Why connections are let in or refused.
pub(crate) fn explain(
    world: &World,
    request: &proto::ExplainRequest,
) -> Result<proto::ExplainResponse, Unable> {
    let source: Reference = request.source.parse()?;
    let (destination, port) = diagnosis::destination(&request.destination)?;
    if port == Some(0) {
        return Err(Unable::Misasked("0 is not a port".to_owned()));
    }
    let source_ip = match &*request.source_ip {
        "" => None,
        ip => {
            Some(ip.parse::<IpAddr>().map_err(|_| Unable::Misasked(format!("{ip:?} is not an IP address")))?)
        }
    };
    let question = Question {
        source: &source,
        destination: &destination,
        port,
        namespace: namespace(&request.namespace),
        source_ip: source_ip.map(|ip| ip.to_canonical()),
    };
    Ok(answer::explained(diagnosis::explain(cluster(world)?, &question)?))
}

/// All that is for a pod.
pub(crate) fn check(world: &World, request: &proto::CheckRequest) -> Result<proto::CheckResponse, Unable> {
    let reference: Reference = request.pod.parse()?;
    let groups = diagnosis::check(cluster(world)?, &reference, namespace(&request.namespace))?;
    Ok(proto::CheckResponse {
        groups: groups.into_iter().map(|group| answer::checked(world, group)).collect(),
    })
}

/// What is likely a mistake: in objects that cannot be read, and in those that can. `places` says where objects stand.
pub(crate) fn analyze(
    world: &World,
    places: &BTreeMap<Key, Origin>,
) -> Result<proto::AnalyzeResponse, Unable> {
    let cluster = cluster(world)?;
    let by_name: BTreeMap<String, &Origin> =
        places.iter().map(|(key, origin)| (key.to_string(), origin)).collect();
    let unreadable = world.problems.iter().map(|problem| proto::Finding {
        code: if problem.notice { "notice" } else { "unreadable" }.to_owned(),
        level: if problem.notice { Level::Info } else { Level::Error }.as_str().to_owned(),
        object: problem.object.clone().unwrap_or_default(),
        field: problem.field.clone().unwrap_or_default(),
        message: problem.message.clone(),
        place: problem.origin.to_string(),
    });
    let found = diagnosis::analyze(cluster).into_iter().map(|finding| {
        let object = finding.subject.to_string();
        proto::Finding {
            code: finding.code.to_owned(),
            level: finding.level.as_str().to_owned(),
            place: by_name.get(&object).map(ToString::to_string).unwrap_or_default(),
            object,
            field: finding.field.unwrap_or_default(),
            message: finding.message,
        }
    });
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Ok(proto::AnalyzeResponse {
        findings: unreadable.chain(found).collect(),
        policies: count(world.policies.len() + world.policies.request_authentications().count()),
        pods: count(world.mesh.pods().count()),
    })
}

fn cluster(world: &World) -> Result<Cluster<'_>, Unable> {
    if !world.synced {
        return Err(Unable::NotReady);
    }
    Ok(Cluster { mesh: &world.mesh, policies: &world.policies })
}

fn namespace(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<Unanswerable> for Unable {
    fn from(error: Unanswerable) -> Self {
        match error {
            Unanswerable::NotFound { .. } => Self::NotFound(error.to_string()),
            _ => Self::Misasked(error.to_string()),
        }
    }
}

/// `None` is no name.
fn name(name: Option<&ObjectName>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests;
