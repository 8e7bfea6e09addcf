//! How the other clusters stand whose objects are read beside those of this one.
//!
//! Promises nothing of traffic: a cluster that is away keeps what was last known of it. Reading them is left to the Kubernetes feed.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

use ambit_core::model::TrustDomain;

use super::kinds::Kind;

/// Where other clusters are named, and what of them counts here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteClusters {
    /// The namespace whose Secrets hold their kubeconfigs.
    pub(crate) namespace: String,
    /// What this cluster is called: no other cluster is of that name.
    pub(crate) own_name: String,
    /// What each cluster has for itself.
    pub(crate) local: super::ClusterLocal,
    /// Where what is known of them is kept over a restart of the agent; a folder that only this user can write to.
    pub(crate) folder: PathBuf,
}

/// How one of them stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterStatus {
    /// Its name: the key of the Secret.
    pub(crate) name: Arc<str>,
    /// The Secret with its kubeconfig.
    pub(crate) secret: String,
    /// Where its API is; empty while that is not known.
    pub(crate) server: String,
    /// The trust domain of its identities.
    pub(crate) trust_domain: TrustDomain,
    /// When its objects had been read to their end for the first time.
    pub(crate) synced: Option<SystemTime>,
    /// When what is in force of it was written down, by an earlier agent, while it has not been read.
    pub(crate) remembered: Option<SystemTime>,
    /// Since when something of it cannot be read.
    pub(crate) away: Option<SystemTime>,
    /// Why that is so, or why its kubeconfig cannot be used.
    pub(crate) error: Option<String>,
    /// Requests to its API that failed.
    pub(crate) errors: u64,
    /// How many of its objects are known.
    pub(crate) objects: usize,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Clusters {
    /// What an earlier agent knew is in force.
    pub(super) recalled: bool,
    /// The Secrets have been read once.
    pub(super) listed: bool,
    by_name: BTreeMap<Arc<str>, Standing>,
}

#[derive(Clone, Debug)]
struct Standing {
    status: ClusterStatus,
    /// What cannot be read now, and why.
    failing: BTreeMap<Kind, String>,
    /// Why the Secret as it is now is not used.
    unusable: Option<String>,
    /// Its API has answered since it is read.
    answers: bool,
}

impl Standing {
    /// It has been read to its end, or cannot be.
    fn is_done(&self) -> bool {
        self.status.synced.is_some() || self.unusable.is_some()
    }
}

impl Clusters {
    /// Whether each that is named has been read to its end, or cannot be.
    pub(super) fn are_read(&self) -> bool {
        self.listed && self.by_name.values().all(Standing::is_done)
    }

    /// Whether none is being read: those that are not read to their end do not answer.
    pub(super) fn are_read_or_silent(&self) -> bool {
        self.by_name
            .values()
            .all(|standing| standing.is_done() || !standing.answers || standing.status.away.is_some())
    }

    /// Its API has answered.
    pub(super) fn answered(&mut self, name: &str) {
        if let Some(standing) = self.by_name.get_mut(name) {
            standing.answers = true;
        }
    }

    /// How they stand, by name; without what they hold.
    pub(super) fn statuses(&self) -> impl Iterator<Item = ClusterStatus> {
        self.by_name.values().map(|standing| ClusterStatus {
            error: standing.unusable.clone().or_else(|| standing.failing.values().next().cloned()),
            ..standing.status.clone()
        })
    }

    /// It is read from now on, by that Secret.
    pub(super) fn begin(&mut self, name: &Arc<str>, secret: &str, server: String, trust_domain: TrustDomain) {
        let standing = self.standing(name, secret, &trust_domain);
        standing.failing.clear();
        standing.unusable = None;
        standing.answers = false;
        let status = &mut standing.status;
        (status.server, status.trust_domain, status.away) = (server, trust_domain, None);
        secret.clone_into(&mut status.secret);
    }

    /// The Secret as it is now cannot be used; what was known before stays.
    pub(super) fn refuse(&mut self, name: &Arc<str>, secret: &str, trust_domain: &TrustDomain, why: String) {
        let standing = self.standing(name, secret, trust_domain);
        secret.clone_into(&mut standing.status.secret);
        standing.unusable = Some(why);
    }

    /// The Secret is again as the cluster is read by; whether it was refused in between.
    pub(super) fn accept(&mut self, name: &str) -> bool {
        self.by_name.get_mut(name).is_some_and(|standing| standing.unusable.take().is_some())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Whether it has been read, or what an earlier agent knew of it is in force.
    pub(super) fn is_known(&self, name: &str) -> bool {
        let status = self.by_name.get(name).map(|standing| &standing.status);
        status.is_some_and(|status| status.synced.is_some() || status.remembered.is_some())
    }

    /// Its objects have been read to their end.
    pub(super) fn read(&mut self, name: &str) {
        if let Some(standing) = self.by_name.get_mut(name) {
            standing.status.synced.get_or_insert_with(SystemTime::now);
            standing.status.remembered = None;
        }
    }

    /// This is in force of it that was written down then.
    pub(super) fn remember(&mut self, name: &Arc<str>, trust_domain: &TrustDomain, written: SystemTime) {
        self.standing(name, "", trust_domain).status.remembered = Some(written);
    }

    /// Those that have been read to their end, with their trust domains.
    pub(super) fn read_ones(&self) -> impl Iterator<Item = (Arc<str>, TrustDomain)> {
        let read = self.by_name.values().filter(|standing| standing.status.synced.is_some());
        read.map(|Standing { status, .. }| (Arc::clone(&status.name), status.trust_domain.clone()))
    }

    /// Whether objects of this kind can be read there; returns why the cluster counts as away, if it does.
    pub(super) fn set_failure(&mut self, name: &str, kind: Kind, failure: Option<String>) -> Option<String> {
        let standing = self.by_name.get_mut(name)?;
        match failure {
            Some(reason) => standing.failing.insert(kind, reason),
            None => standing.failing.remove(&kind),
        };
        if standing.failing.is_empty() {
            standing.status.away = None;
        } else {
            standing.status.away.get_or_insert_with(SystemTime::now);
        }
        standing.failing.values().next().cloned()
    }

    pub(super) fn count_error(&mut self, name: &str) {
        if let Some(standing) = self.by_name.get_mut(name) {
            standing.status.errors += 1;
        }
    }

    fn standing(&mut self, name: &Arc<str>, secret: &str, trust_domain: &TrustDomain) -> &mut Standing {
        self.by_name.entry(Arc::clone(name)).or_insert_with(|| Standing {
            status: ClusterStatus {
                name: Arc::clone(name),
                secret: secret.to_owned(),
                server: String::new(),
                trust_domain: trust_domain.clone(),
                synced: None,
                remembered: None,
                away: None,
                error: None,
                errors: 0,
                objects: 0,
            },
            failing: BTreeMap::new(),
            unusable: None,
            answers: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_being_read_is_told_from_who_is_silent() {
        let (mut all, west) = (Clusters::default(), Arc::<str>::from("west"));
        all.listed = true;
        assert!(all.are_read() && all.are_read_or_silent(), "there is none");
        all.begin(&west, "ns/s", String::new(), TrustDomain::default());
        assert!(!all.are_read() && all.are_read_or_silent(), "it has not answered");
        all.answered("west");
        assert!(!all.are_read_or_silent(), "it is being read");
        all.set_failure("west", Kind::Pod, Some("gone".to_owned()));
        assert!(all.are_read_or_silent(), "it has stopped in the middle");
        all.set_failure("west", Kind::Pod, None);
        assert!(!all.are_read_or_silent());
        assert!(!all.is_known("west") && !all.is_known("north"));
        all.remember(&west, &TrustDomain::default(), SystemTime::UNIX_EPOCH);
        assert!(all.is_known("west"));
        assert!(!all.are_read_or_silent(), "what was known is no reason not to wait for what is");
        all.read("west");
        assert!(all.is_known("west"));
        assert!(all.are_read() && all.are_read_or_silent());
        assert!(all.statuses().all(|status| status.remembered.is_none()));
        // By another Secret: it has been read once, and that stays.
        all.begin(&west, "ns/t", String::new(), TrustDomain::default());
        assert!(all.are_read() && all.are_read_or_silent());
    }
}
