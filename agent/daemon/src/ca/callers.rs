//! Who may ask: the file of callers, re-read when it changes, and the service accounts of a cluster.
//!
//! Promises that a file that cannot be used leaves the last good one in force, and that secrets are compared in constant
//! time. Leaves to the TLS library whether a client certificate is genuine.

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ambit_core::model::{SpiffeId, TrustDomain};
use arc_swap::ArcSwap;
use aws_lc_rs::{constant_time, digest};
use nix::libc::O_NONBLOCK;
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

use super::{CaServiceError, kubernetes::Cluster, refusal::Refusal};

/// No file of callers is longer.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// More callers are not taken.
const MAX_CALLERS: usize = 10_000;
/// A shorter token can be guessed.
const MIN_TOKEN: usize = 20;
/// No token is longer.
pub(crate) const MAX_TOKEN: usize = 16 * 1024;

/// The callers of this CA.
#[derive(Debug)]
pub(crate) struct Callers {
    file: Option<CallersFile>,
    cluster: Option<Arc<Cluster>>,
}

/// The callers that a file lists.
#[derive(Debug)]
struct CallersFile {
    path: PathBuf,
    trust_domain: TrustDomain,
    entries: ArcSwap<Vec<Arc<Entry>>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    content: [u8; 32],
    problem: Option<String>,
}

/// One who has proved to be a caller.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Listed in the file.
    Listed(Arc<Entry>),
    /// The agent of a node of the cluster.
    Agent {
        /// The node that its pod runs on.
        node: String,
        /// Who knows what else runs there.
        cluster: Arc<Cluster>,
    },
    /// A service account that may have its own identity.
    Account {
        /// `namespace/name`.
        name: String,
        /// That identity.
        identity: SpiffeId,
    },
}

/// One caller as the file says.
#[derive(Debug)]
pub(crate) struct Entry {
    node: String,
    proof: Proof,
    identities: HashSet<SpiffeId>,
    namespaces: HashSet<String>,
    service_accounts: HashSet<(String, String)>,
}

/// What a caller proves itself with.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Proof {
    /// SHA-256 of a bearer token.
    Token([u8; 32]),
    /// The identity in a client certificate.
    Certificate(SpiffeId),
}

impl Callers {
    /// Reads the file for the first time; `cluster` vouches for tokens that are not in it.
    pub(crate) fn open(
        path: Option<&Path>,
        cluster: Option<Arc<Cluster>>,
        trust_domain: &TrustDomain,
    ) -> Result<Self, CaServiceError> {
        let file = path.map(|path| CallersFile::open(path, trust_domain)).transpose()?;
        Ok(Self { file, cluster })
    }

    /// Reads the file again and takes it over if it changed and is good. Blocks.
    pub(crate) fn refresh(&self) {
        if let Some(file) = &self.file {
            file.refresh();
        }
    }

    /// The caller at `from` that a token or a verified client certificate belongs to. A token that is given must be good,
    /// whatever certificate comes with it.
    pub(crate) async fn authenticate(
        &self,
        token: Option<&str>,
        certificate: Option<&SpiffeId>,
        from: IpAddr,
        trust_domain: &TrustDomain,
    ) -> Result<Caller, Refusal> {
        let listed = match &self.file {
            Some(file) => file.authenticate(token, certificate),
            None if token.is_some() => Err(Refusal::UnknownCaller("token")),
            None if certificate.is_some() => Err(Refusal::UnknownCaller("client certificate")),
            None => Err(Refusal::NoCredentials),
        };
        let (Err(Refusal::UnknownCaller(_)), Some(token), Some(cluster)) = (&listed, token, &self.cluster)
        else {
            return listed;
        };
        let account = cluster.review(token, sha256(token.as_bytes()), from).await?;
        if let Some(node) = account.node {
            return Ok(Caller::Agent { node, cluster: cluster.clone() });
        }
        let identity = SpiffeId::new(trust_domain.clone(), &account.namespace, &account.name)
            .map_err(|_| Refusal::UnknownCaller("token"))?;
        Ok(Caller::Account { name: format!("{}/{}", account.namespace, account.name), identity })
    }
}

impl Caller {
    /// The node that the caller serves; the account's name for one that stands for itself.
    pub(crate) fn node(&self) -> &str {
        match self {
            Self::Listed(entry) => &entry.node,
            Self::Agent { node, .. } => node,
            Self::Account { name, .. } => name,
        }
    }

    /// What the caller proved itself with, in a word.
    pub(crate) fn proof(&self) -> &'static str {
        match self {
            Self::Listed(entry) if matches!(entry.proof, Proof::Token(_)) => "token",
            Self::Listed(_) => "certificate",
            Self::Agent { .. } => "node-account",
            Self::Account { .. } => "service-account",
        }
    }

    /// Whether `id`, of this CA's trust domain, runs on the caller's node.
    pub(crate) async fn authorize(&self, id: &SpiffeId) -> Result<(), Refusal> {
        let allowed = match self {
            Self::Listed(entry) => entry.lists(id),
            Self::Agent { node, cluster } => cluster.runs_on(node, id).await?,
            Self::Account { identity, .. } => identity == id,
        };
        match allowed {
            true => Ok(()),
            false => Err(Refusal::NotOnNode { id: id.clone(), node: self.node().to_owned() }),
        }
    }
}

impl Entry {
    fn lists(&self, id: &SpiffeId) -> bool {
        let account = (id.namespace().to_owned(), id.service_account().to_owned());
        self.identities.contains(id)
            || self.namespaces.contains(id.namespace())
            || self.service_accounts.contains(&account)
    }
}

impl CallersFile {
    fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Self, CaServiceError> {
        let bad = |problem| CaServiceError::Callers { path: path.to_owned(), problem };
        let text = read(path).map_err(bad)?;
        let entries = parse(&text, trust_domain).map_err(bad)?;
        tracing::info!(file = %path.display(), callers = entries.len(), "callers read");
        Ok(Self {
            path: path.to_owned(),
            trust_domain: trust_domain.clone(),
            entries: ArcSwap::from_pointee(entries),
            seen: Mutex::new(Seen { content: sha256(text.as_bytes()), problem: None }),
        })
    }

    fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = read(&self.path).and_then(|text| {
            let content = sha256(text.as_bytes());
            if content == seen.content && seen.problem.is_none() {
                return Ok(None);
            }
            parse(&text, &self.trust_domain).map(|entries| Some((content, entries)))
        });
        match fresh {
            Ok(None) => {}
            Ok(Some((content, entries))) => {
                tracing::info!(file = %self.path.display(), callers = entries.len(), "callers read");
                self.entries.store(Arc::new(entries));
                *seen = Seen { content, problem: None };
            }
            Err(problem) => {
                if seen.problem.as_ref() != Some(&problem) {
                    let file = self.path.display();
                    tracing::error!(%file, problem, "the file of callers is unusable; its last good content stays in force");
                }
                seen.problem = Some(problem);
            }
        }
    }

    fn authenticate(&self, token: Option<&str>, certificate: Option<&SpiffeId>) -> Result<Caller, Refusal> {
        let entries = self.entries.load();
        let (found, what) = match (token, certificate) {
            (Some(token), _) => {
                let hash = sha256(token.as_bytes());
                // All are compared: the time tells neither whether nor where there is a match.
                let find = |found, entry: &Arc<Entry>| match &entry.proof {
                    Proof::Token(known) if constant_time::verify_slices_are_equal(known, &hash).is_ok() => {
                        Some(entry.clone())
                    }
                    _ => found,
                };
                (entries.iter().fold(None, find), "token")
            }
            (None, Some(id)) => {
                let holds =
                    |entry: &&Arc<Entry>| matches!(&entry.proof, Proof::Certificate(known) if known == id);
                (entries.iter().find(holds).cloned(), "client certificate")
            }
            (None, None) => return Err(Refusal::NoCredentials),
        };
        found.map(Caller::Listed).ok_or(Refusal::UnknownCaller(what))
    }
}

/// The file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    callers: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Line {
    node: String,
    token: Option<String>,
    token_sha256: Option<String>,
    certificate: Option<String>,
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    service_accounts: Vec<String>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.token.zeroize();
    }
}

/// Reads the file, if nobody else can. The text must not be printed.
fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    let open = || -> io::Result<(File, u32, u32)> {
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        match metadata.is_file() {
            true => Ok((file, metadata.mode(), metadata.uid())),
            false => Err(io::Error::other("not a regular file")),
        }
    };
    let (file, mode, owner) = open().map_err(|error| error.to_string())?;
    if mode & 0o027 != 0 {
        return Err(format!(
            "others can read or write it (mode {:04o}); run: chmod 600 {}",
            mode & 0o7777,
            path.display()
        ));
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(format!("it belongs to user {owner}, who could exchange what is in it"));
    }
    let mut text = Zeroizing::new(String::new());
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if read as u64 > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes"));
    }
    Ok(text)
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
        let entry = entry(line, trust_domain).map_err(|problem| format!("callers[{index}]: {problem}"))?;
        let proof = match &entry.proof {
            Proof::Token(hash) => Proof::Token(*hash),
            Proof::Certificate(id) => Proof::Certificate(id.clone()),
        };
        if !known.insert(proof) {
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

fn entry(line: &Line, trust_domain: &TrustDomain) -> Result<Entry, String> {
    if line.node.is_empty() || line.node.len() > 253 || !line.node.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err("node: not the name of a node".into());
    }
    let own = |text: &str, field: &str| -> Result<SpiffeId, String> {
        let id: SpiffeId = text.parse().map_err(|error| format!("{field}: {error}"))?;
        match id.trust_domain() == trust_domain {
            true => Ok(id),
            false => Err(format!("{field}: {id} is not in the trust domain {trust_domain}")),
        }
    };
    let namespace_of = |namespace: &str, account: &str, field: &str| {
        SpiffeId::new(trust_domain.clone(), namespace, account).map_err(|error| format!("{field}: {error}"))
    };
    let proof = match (&line.token, &line.token_sha256, &line.certificate) {
        (Some(token), None, None) => {
            if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len())
                || !token.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(format!(
                    "token: must have {MIN_TOKEN} to {MAX_TOKEN} printable characters and no space"
                ));
            }
            Proof::Token(sha256(token.as_bytes()))
        }
        (None, Some(hash), None) => {
            Proof::Token(unhex(hash).ok_or_else(|| "token-sha256: must be 64 hexadecimal digits".to_owned())?)
        }
        (None, None, Some(uri)) => Proof::Certificate(own(uri, "certificate")?),
        _ => return Err("must have exactly one of token, token-sha256, certificate".into()),
    };
    let mut entry = Entry {
        node: line.node.clone(),
        proof,
        identities: HashSet::new(),
        namespaces: HashSet::new(),
        service_accounts: HashSet::new(),
    };
    for uri in &line.identities {
        entry.identities.insert(own(uri, "identities")?);
    }
    for namespace in &line.namespaces {
        namespace_of(namespace, "default", "namespaces")?;
        entry.namespaces.insert(namespace.clone());
    }
    for account in &line.service_accounts {
        let (namespace, name) = account
            .split_once('/')
            .ok_or_else(|| format!("service-accounts: {account:?} is not NAMESPACE/NAME"))?;
        namespace_of(namespace, name, "service-accounts")?;
        entry.service_accounts.insert((namespace.to_owned(), name.to_owned()));
    }
    Ok(entry)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
