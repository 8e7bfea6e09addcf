//! The issuers that rules name, and their keys as they are at this moment.
//!
//! Promises that whoever judges a token reads keys without a lock, and that issuers nobody names are not asked. Keys of an issuer
//! that is named again are still there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ambit_core::policy::{JwtRule, Keys};
use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::Instant,
};

use super::{JwksSettings, keys::KeySet, refresh};
use crate::telemetry::{IssuerKeys, Telemetry};

/// Issuers that are followed at once; the tokens of others are refused.
const MOST: usize = 1_000;
/// Issuers that are asked at once.
const AT_ONCE: usize = 8;
/// How long keys are good for that nobody could fetch again, or nobody wanted.
pub(super) const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// An issuer, and where its keys are; without an address, where its OpenID configuration says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) issuer: Box<str>,
    pub(super) url: Option<Box<str>>,
}

/// How an issuer stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IssuerStatus {
    /// As tokens name it.
    pub(crate) issuer: String,
    /// Where its keys are fetched; empty if its OpenID configuration says so.
    pub(crate) url: String,
    /// How many keys there are for its tokens; without one they are refused.
    pub(crate) keys: usize,
    /// When they were fetched.
    pub(crate) fetched: Option<SystemTime>,
    /// Why they could not be fetched since; empty if they could.
    pub(crate) error: String,
}

impl IssuerStatus {
    /// The same for metrics.
    pub(super) fn measured(&self) -> IssuerKeys<'_> {
        IssuerKeys { issuer: &self.issuer, url: &self.url, keys: self.keys, fetched: self.fetched }
    }
}

/// An issuer whose keys are fetched.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) source: Source,
    /// Patience with one answer, in milliseconds.
    pub(super) timeout_ms: AtomicU64,
    keys: ArcSwapOption<KeySet>,
    standing: Mutex<Standing>,
    /// Somebody lacks a key.
    pub(super) wished: Notify,
}

#[derive(Debug, Default)]
struct Standing {
    fetched: Option<(SystemTime, Instant)>,
    error: Option<String>,
}

/// The keys for one rule's tokens.
pub(super) enum KeySource {
    /// Which stand in the rule; `None` if they are of no use.
    Inline(Option<Arc<KeySet>>),
    /// Which are fetched.
    Fetched(Arc<Issuer>),
    /// Which nobody has begun to fetch.
    Unknown,
}

type ByIssuer = HashMap<Box<str>, Vec<Arc<Issuer>>>;
type ByText = HashMap<Box<str>, Option<Arc<KeySet>>>;

pub(super) struct Issuers {
    settings: Arc<JwksSettings>,
    telemetry: Telemetry,
    fetched: ArcSwap<ByIssuer>,
    inline: ArcSwap<ByText>,
    following: Mutex<Following>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Following {
    tasks: BTreeMap<Source, (Arc<Issuer>, AbortHandle)>,
    /// Not followed, with keys that may be wanted again.
    resting: BTreeMap<Source, Arc<Issuer>>,
    too_many: bool,
}

impl Issuers {
    pub(super) fn new(settings: JwksSettings, telemetry: Telemetry) -> Self {
        Self {
            settings: Arc::new(settings),
            telemetry,
            fetched: ArcSwap::default(),
            inline: ArcSwap::default(),
            following: Mutex::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The keys for tokens by `rule`.
    pub(super) fn of(&self, rule: &JwtRule) -> KeySource {
        let url = match &rule.keys {
            Keys::Inline(text) => {
                let known = self.inline.load().get(text).cloned();
                // Nobody follows a rule in its first moments.
                return KeySource::Inline(known.unwrap_or_else(|| parsed(text)));
            }
            Keys::Url(url) => Some(url),
            Keys::Discovered => None,
        };
        let fetched = self.fetched.load();
        let of_issuer = fetched.get(&rule.issuer).map_or(&[][..], Vec::as_slice);
        let found = of_issuer.iter().find(|issuer| issuer.source.url.as_ref() == url);
        found.map_or(KeySource::Unknown, |issuer| KeySource::Fetched(issuer.clone()))
    }

    pub(super) fn follow(&self, wanted: impl IntoIterator<Item = Arc<JwtRule>>) {
        let (mut sources, mut texts) = (BTreeMap::<Source, u64>::new(), HashSet::<Box<str>>::new());
        for rule in wanted {
            let url = match &rule.keys {
                Keys::Inline(text) => {
                    texts.insert(text.clone());
                    continue;
                }
                Keys::Url(url) => Some(url.clone()),
                Keys::Discovered => None,
            };
            let patience = sources.entry(Source { issuer: rule.issuer.clone(), url }).or_default();
            *patience = rule.timeout_ms.max(*patience);
        }
        let mut following = self.following();
        following.end_all_but(&sources);
        following.tell_too_many(sources.len());
        for (source, patience) in sources.into_iter().take(MOST) {
            if let Some((issuer, _)) = following.tasks.get(&source) {
                issuer.timeout_ms.store(patience, Ordering::Relaxed);
                continue;
            }
            let resting = following.resting.remove(&source);
            let issuer = resting.unwrap_or_else(|| Issuer::new(source.clone()));
            issuer.timeout_ms.store(patience, Ordering::Relaxed);
            following.tasks.insert(source, (issuer.clone(), self.spawn(issuer)));
        }
        let mut by_issuer = ByIssuer::new();
        for (source, (issuer, _)) in &following.tasks {
            by_issuer.entry(source.issuer.clone()).or_default().push(issuer.clone());
        }
        self.fetched.store(Arc::new(by_issuer));
        let before = self.inline.load_full();
        let kept = |text: Box<str>| {
            let set = before.get(&text).cloned().unwrap_or_else(|| parsed(&text));
            (text, set)
        };
        self.inline.store(Arc::new(texts.into_iter().map(kept).collect()));
        let statuses: Vec<_> = following.tasks.values().map(|(issuer, _)| issuer.status()).collect();
        self.telemetry.issuers(statuses.iter().map(IssuerStatus::measured));
    }

    fn spawn(&self, issuer: Arc<Issuer>) -> AbortHandle {
        let keeping =
            refresh::keep(issuer, self.settings.clone(), self.permits.clone(), self.telemetry.clone());
        tokio::spawn(keeping).abort_handle()
    }

    pub(super) fn settled(&self) -> bool {
        self.following().tasks.values().all(|(issuer, _)| {
            let standing = issuer.standing();
            standing.fetched.is_some() || standing.error.is_some()
        })
    }

    pub(super) fn statuses(&self) -> Vec<IssuerStatus> {
        self.following().tasks.values().map(|(issuer, _)| issuer.status()).collect()
    }

    fn following(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuers").field("followed", &self.following().tasks.len()).finish_non_exhaustive()
    }
}

impl Drop for Issuers {
    fn drop(&mut self) {
        self.following().end_all_but(&BTreeMap::new());
    }
}

impl Following {
    fn end_all_but(&mut self, wanted: &BTreeMap<Source, u64>) {
        let gone: Vec<Source> =
            self.tasks.keys().filter(|source| !wanted.contains_key(*source)).cloned().collect();
        for source in gone {
            if let Some((issuer, task)) = self.tasks.remove(&source) {
                task.abort();
                self.resting.insert(source, issuer);
            }
        }
        self.resting.retain(|_, issuer| issuer.is_fresh());
        while self.resting.len() > MOST {
            self.resting.pop_first();
        }
    }

    fn tell_too_many(&mut self, wanted: usize) {
        let too_many = wanted > MOST;
        if too_many && !self.too_many {
            tracing::error!(wanted, most = MOST, "too many issuers; tokens of those beyond are refused");
        }
        self.too_many = too_many;
    }
}

impl KeySource {
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::Inline(keys) => keys.clone(),
            Self::Fetched(issuer) => issuer.keys.load_full(),
            Self::Unknown => None,
        }
    }

    /// Has the keys fetched soon, if that is not too soon after the last time: somebody lacks one.
    pub(super) fn wish(&self) {
        if let Self::Fetched(issuer) = self {
            issuer.wished.notify_one();
        }
    }
}

impl Issuer {
    pub(super) fn new(source: Source) -> Arc<Self> {
        Arc::new(Self {
            source,
            timeout_ms: AtomicU64::default(),
            keys: ArcSwapOption::default(),
            standing: Mutex::default(),
            wished: Notify::new(),
        })
    }

    /// Takes keys that were fetched; whether there was trouble before.
    pub(super) fn take(&self, keys: KeySet) -> bool {
        self.keys.store(Some(Arc::new(keys)));
        let mut standing = self.standing();
        standing.fetched = Some((SystemTime::now(), Instant::now()));
        standing.error.take().is_some()
    }

    /// Takes note of why keys could not be fetched. Those that are there stay, up to their age; whether there are any.
    pub(super) fn fail(&self, error: String) -> bool {
        if !self.is_fresh() {
            self.keys.store(None);
        }
        self.standing().error = Some(error);
        self.keys.load().is_some()
    }

    fn is_fresh(&self) -> bool {
        self.standing().fetched.is_some_and(|(_, at)| at.elapsed() < LONGEST)
    }

    pub(super) fn status(&self) -> IssuerStatus {
        let standing = self.standing();
        IssuerStatus {
            issuer: self.source.issuer.to_string(),
            url: self.source.url.as_deref().unwrap_or_default().to_owned(),
            keys: self.keys.load().as_ref().map_or(0, |keys| keys.len()),
            fetched: standing.fetched.map(|(at, _)| at),
            error: standing.error.clone().unwrap_or_default(),
        }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parsed(text: &str) -> Option<Arc<KeySet>> {
    KeySet::parse(text.as_bytes()).ok().map(Arc::new)
}
