//! Questions about policies, as they are asked of an agent or of a folder of manifests: from words to the answers of
//! `ambit.policy.v1`.
//!
//! Promises the same answer from both. Judging is left to the core, asking and showing to others.

mod answer;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::SystemTime};

use ambit_core::{
    diagnosis::{self, Asked, Cluster, Level, Question, Reference, Token, Unanswerable},
    model::ObjectName,
    policy::JwtRule,
};
use ambit_proto::policy::v1 as proto;

use crate::{
    discovery::{Key, Origin, World},
    jwt::{Assessed, assess},
};

/// Header fields of a request that is asked about.
const MAX_HEADERS: usize = 256;

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
    let asked = request.request.as_ref();
    let headers = asked.map(header_fields).transpose()?.unwrap_or_default();
    let token = |rules: &[Arc<JwtRule>]| judged(rules, asked.map_or("", |asked| &asked.token));
    let question = Question {
        source: &source,
        destination: &destination,
        port,
        namespace: namespace(&request.namespace),
        source_ip: source_ip.map(|ip| ip.to_canonical()),
        request: asked.map(|asked| Asked {
            method: &asked.method,
            path: &asked.path,
            host: Some(&*asked.host).filter(|host| !host.is_empty()),
            headers: &headers,
            token: &token,
        }),
    };
    Ok(answer::explained(diagnosis::explain(cluster(world)?, &question)?))
}

/// Names in lower case, and both without what ends a line.
fn header_fields(asked: &proto::HttpRequest) -> Result<Vec<(String, String)>, Unable> {
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    if asked.headers.len() > MAX_HEADERS {
        return Err(Unable::Misasked(format!("there are more than {MAX_HEADERS} headers")));
    }
    if !asked.path.starts_with('/') && asked.path != "*" {
        return Err(Unable::Misasked(format!("{:?} is not a path: it begins with a slash", asked.path)));
    }
    let fields = asked.headers.iter().map(|proto::HttpHeader { name, value }| {
        match is_name(name) && !value.contains(['\r', '\n', '\0']) {
            true => Ok((name.to_ascii_lowercase(), value.clone())),
            false => Err(Unable::Misasked(format!("{name:?} with that value is not a header field"))),
        }
    });
    fields.collect()
}

/// What becomes of a token where these issuers count.
fn judged(rules: &[Arc<JwtRule>], token: &str) -> Token {
    if token.trim().is_empty() {
        return Token::None;
    } else if rules.is_empty() {
        return Token::Ignored;
    }
    match assess(rules, token, SystemTime::now()) {
        Assessed::Good { claims, issuer, verified } => {
            let how = if verified {
                "by the keys of"
            } else {
                "unverified: its signature was not checked against the keys of"
            };
            Token::Good { claims, how: format!("{how} {issuer}") }
        }
        Assessed::Bad { status, text } => Token::Bad { status, text: text.to_owned() },
    }
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
        let told = answer::finding(finding);
        proto::Finding {
            place: by_name.get(&told.object).map(ToString::to_string).unwrap_or_default(),
            ..told
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
