//! What is wrong in a source: within bounds, in the order of origins, and in the log once.

use std::collections::{BTreeMap, HashSet};

use tracing::{info, warn};

use super::{InForce, Key, Ledger};
use crate::discovery::{Origin, Problem, kinds::FieldError};

/// Problems of one origin that are named; the rest are counted.
pub(super) const MAX_ORIGIN_PROBLEMS: usize = 100;
/// Problems of one source that are named; the rest are counted.
const MAX_SOURCE_PROBLEMS: usize = 2_000;

impl Ledger {
    /// What is wrong now: the source first, then origin by origin.
    pub(super) fn current_problems(&self) -> Vec<Problem> {
        let of_source = self.source_problems.iter();
        let mut problems: Vec<Problem> =
            of_source.map(|(origin, text)| Problem::new(origin, None, FieldError::new("", text))).collect();
        let mut duplicates: BTreeMap<&Origin, BTreeMap<usize, Problem>> =
            self.with_problems.iter().map(|origin| (origin, BTreeMap::new())).collect();
        for key in &self.contested {
            let Some(InForce { claim: first, .. }) = self.in_force.get(key) else { continue };
            for claim in self.claims.get(key).into_iter().flatten().filter(|claim| *claim > first) {
                duplicates.entry(&claim.0).or_default().insert(claim.1, duplicate(&claim.0, &first.0, key));
            }
        }
        for (origin, duplicates) in duplicates {
            let own = self.origins.get(origin).map_or(&[][..], |content| &content.problems);
            let of_origin: Vec<Problem> = own.iter().cloned().chain(duplicates.into_values()).collect();
            problems.extend(capped(of_origin, MAX_ORIGIN_PROBLEMS, "file"));
        }
        capped(problems, MAX_SOURCE_PROBLEMS, "source")
    }
}

impl Problem {
    /// What is wrong with an object, or with the origin where none is named.
    pub(in crate::discovery) fn new(origin: &Origin, object: Option<String>, error: FieldError) -> Self {
        Self { origin: origin.clone(), object, field: error.field, message: error.message }
    }
}

fn duplicate(origin: &Origin, first: &Origin, key: &Key) -> Problem {
    let message = if origin == first {
        "stands twice in this file; the first one is in force".to_owned()
    } else {
        format!("stands in {first} too, which comes first and is in force")
    };
    let error = FieldError { field: Some("metadata.name".into()), message };
    Problem::new(origin, Some(key.to_string()), error)
}

/// The first `most` problems; the rest are counted, at the origin of the first.
fn capped(mut problems: Vec<Problem>, most: usize, whole: &str) -> Vec<Problem> {
    if let Some(more) = problems.len().checked_sub(most + 1) {
        let message = format!("{} more problems in this {whole}", more + 1);
        problems.truncate(most);
        let rest = Problem::new(&problems[0].origin, None, FieldError::new("", message));
        problems.push(rest);
    }
    problems
}

/// Logs each problem once when it appears and once when it is gone.
pub(super) fn log_changes(before: &[Problem], now: &[Problem]) {
    let known: HashSet<_> = before.iter().collect();
    let present: HashSet<_> = now.iter().collect();
    for Problem { origin, object, field, message } in now.iter().filter(|problem| !known.contains(problem)) {
        warn!(%origin, object, field, "{message}");
    }
    for Problem { origin, object, field, message } in
        before.iter().filter(|problem| !present.contains(problem))
    {
        info!(%origin, object, field, "no longer so: {message}");
    }
}
