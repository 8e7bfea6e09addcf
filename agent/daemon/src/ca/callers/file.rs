//! The file of callers (docs/ca.md), read again when it changes.
//!
//! Promises that a file that cannot be used leaves the last good one in force, that one which others may read or write is not
//! used, and that secrets are compared in constant time.

use std::{
    collections::HashSet,
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use ambit_core::model::{SpiffeId, TrustDomain};
use arc_swap::ArcSwap;
use aws_lc_rs::constant_time;
use serde::Deserialize;

use super::entry::{Entry, Line, MIN_TOKEN, Proof, sha256};
use crate::{
    ca::{CaServiceError, refusal::Refusal},
    files::{self, Watched},
};

/// The longest file read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// More callers are not taken.
const MAX_CALLERS: usize = 10_000;

/// The callers that a file lists.
#[derive(Debug)]
pub(super) struct CallersFile {
    path: PathBuf,
    trust_domain: TrustDomain,
    entries: ArcSwap<Vec<Arc<Entry>>>,
    watched: Watched,
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    callers: Vec<Line>,
}

impl CallersFile {
    /// Reads the file for the first time.
    pub(super) fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, CaServiceError> {
        let file = Self {
            path: path.to_owned(),
            trust_domain: trust_domain.clone(),
            entries: ArcSwap::default(),
            watched: Watched::new([path.to_owned()]),
        };
        file.take().map_err(|problem| CaServiceError::Callers { path: path.to_owned(), problem })?;
        Ok(file)
    }

    /// Takes the file over whenever it has changed and is good. Never ends.
    pub(super) async fn follow(self: Arc<Self>) {
        let (file, watched) = (self.clone(), self.watched.clone());
        let complain = |problem: &str| {
            let file = self.path.display();
            tracing::error!(%file, problem, "the file of callers is unusable; its last good content stays in force");
        };
        watched.follow(move || file.take(), complain).await;
    }

    /// Takes the file over; the error says what is wrong with it, and holds no token.
    pub(super) fn take(&self) -> Result<(), String> {
        let content = files::read_if(&self.path, MAX_FILE, private)
            .map_err(|error| error.into_problem().to_string())?;
        let text = str::from_utf8(&content).map_err(|_| "not UTF-8 text".to_owned())?;
        let entries = parse(text, &self.trust_domain)?;
        tracing::info!(file = %self.path.display(), callers = entries.len(), "callers read");
        self.entries.store(Arc::new(entries));
        Ok(())
    }

    /// The caller that a token or a verified client certificate belongs to. A token that is given must be good.
    pub(super) fn find(
        &self,
        token: Option<&str>,
        certificate: Option<&SpiffeId>,
    ) -> Result<Arc<Entry>, Refusal> {
        let entries = self.entries.load();
        let (found, what) = match (token, certificate) {
            (Some(token), _) => {
                let hash = sha256(token.as_bytes());
                // All are compared: the time tells neither whether nor where there is a match.
                let find = |found, entry: &Arc<Entry>| match entry.proof() {
                    Proof::Token(known) if constant_time::verify_slices_are_equal(known, &hash).is_ok() => {
                        Some(entry.clone())
                    }
                    _ => found,
                };
                (entries.iter().fold(None, find), "token")
            }
            (None, Some(id)) => {
                let holds =
                    |entry: &&Arc<Entry>| matches!(entry.proof(), Proof::Certificate(known) if known == id);
                (entries.iter().find(holds).cloned(), "client certificate")
            }
            (None, None) => return Err(Refusal::NoCredentials),
        };
        found.ok_or(Refusal::UnknownCaller(what))
    }
}

/// Whether nobody but us can have written the file, nor read the tokens in it.
fn private(file: &Metadata) -> io::Result<()> {
    let (mode, owner) = (file.mode(), file.uid());
    if mode & 0o027 != 0 {
        let mode = mode & 0o7777;
        return Err(io::Error::other(format!(
            "others can read or write it (mode {mode:04o}); run chmod 600 on it"
        )));
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "it belongs to user {owner}, who could exchange what is in it"
        )));
    }
    Ok(())
}

fn parse(text: &str, trust_domain: &TrustDomain) -> Result<Vec<Arc<Entry>>, String> {
    let document = serde_yaml_ng::Deserializer::from_str(text);
    let Document { callers } =
        serde_path_to_error::deserialize(document).map_err(|error| redacted(&error))?;
    if callers.len() > MAX_CALLERS {
        return Err(format!("more than {MAX_CALLERS} callers"));
    }
    let mut known = HashSet::new();
    let mut entries = Vec::with_capacity(callers.len());
    for (index, line) in callers.iter().enumerate() {
        let entry =
            Entry::read(line, trust_domain).map_err(|problem| format!("callers[{index}]: {problem}"))?;
        if !known.insert(entry.proof().clone()) {
            return Err(format!("callers[{index}]: an earlier caller has the same token or certificate"));
        }
        entries.push(Arc::new(entry));
    }
    Ok(entries)
}

/// What the parser says, and where; without anything long enough to be a token.
fn redacted(error: &serde_path_to_error::Error<serde_yaml_ng::Error>) -> String {
    let short = |text: &str, ends: &[char]| text.split(ends).all(|part| part.len() < MIN_TOKEN);
    let (path, inner) = (error.path().to_string(), error.inner());
    let text = inner.to_string();
    let told = ["unknown field", "missing field"].iter().any(|kind| text.contains(kind));
    let problem = match text.split('`').nth(1) {
        Some(name) if told && short(name, &[]) => text.split(", expected").next().unwrap_or(&text),
        _ => "not of the form that docs/ca.md describes",
    };
    let at = inner.location().map(|at| format!(" (line {}, column {})", at.line(), at.column()));
    let path = if short(&path, &['.', '[']) { path.as_str() } else { "callers" };
    let problem = problem.split(" at line").next().unwrap_or(problem);
    format!("{path}: {problem}{}", at.unwrap_or_default())
}
