//! What a client may do on a port: all that a connection may carry, or what it requested.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ambit_proto::admin::v1::{ObservedSource, Party};
use serde::Serialize;

/// Who came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// As AuthorizationPolicy has identities: without `spiffe://`.
    Principal(String),
    Plaintext(IpAddr),
}

/// By what several agents have seen of one client and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Allowed {
    /// Some of what it sent was not read.
    Everything,
    /// Methods, each with the values of `paths`; none for all paths.
    Requests(BTreeMap<String, BTreeSet<String>>),
}

/// `to[].operation` of a rule.
#[derive(Debug, Serialize)]
pub(super) struct Operation {
    ports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    paths: Vec<String>,
}

impl Client {
    pub(super) fn of(party: &Party) -> Option<Self> {
        match party.identity.strip_prefix("spiffe://") {
            Some(principal) => Some(Self::Principal(principal.to_owned())),
            None => party.ip.parse().ok().map(Self::Plaintext),
        }
    }
}

impl Default for Allowed {
    fn default() -> Self {
        Self::Requests(BTreeMap::new())
    }
}

impl Allowed {
    /// Adds what one agent has seen.
    pub(super) fn add(&mut self, source: &ObservedSource) {
        let Self::Requests(methods) = self else { return };
        if !source.requests_known {
            *self = Self::Everything;
            return;
        }
        for operation in &source.operations {
            let before = methods.get(&operation.method);
            let all = operation.paths.is_empty() || before.is_some_and(BTreeSet::is_empty);
            let paths = methods.entry(operation.method.clone()).or_default();
            if all {
                paths.clear();
            } else {
                paths.extend(operation.paths.iter().cloned());
            }
        }
    }

    /// None of its requests was let in.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Requests(methods) if methods.is_empty())
    }

    pub(super) fn has_templates(&self) -> bool {
        let Self::Requests(methods) = self else { return false };
        methods.values().flatten().any(|path| path.contains('{'))
    }

    /// How many values a rule for so many ports has.
    pub(super) fn values(&self, ports: usize) -> usize {
        match self {
            Self::Everything => ports,
            Self::Requests(methods) => methods.values().map(|paths| ports + 1 + paths.len()).sum(),
        }
    }

    /// Methods with the same paths stand together.
    pub(super) fn operations(&self, ports: &[String]) -> Vec<Operation> {
        let ports = ports.to_vec();
        let Self::Requests(methods) = self else {
            return vec![Operation { ports, methods: Vec::new(), paths: Vec::new() }];
        };
        let mut alike = BTreeMap::<&BTreeSet<String>, Vec<String>>::new();
        for (method, paths) in methods {
            alike.entry(paths).or_default().push(method.clone());
        }
        let operation = |(paths, methods): (&BTreeSet<String>, Vec<String>)| Operation {
            ports: ports.clone(),
            methods,
            paths: paths.iter().cloned().collect(),
        };
        alike.into_iter().map(operation).collect()
    }
}
