//! How a provider stands: what it has answered so far, and why it fails if it does.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use super::settings::{Form, ProviderSettings};

/// One provider, for who looks after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// Where it is said to be.
    pub(crate) address: String,
    /// `grpc` or `http`.
    pub(crate) form: &'static str,
    /// Whether it lets in who cannot be judged.
    pub(crate) fail_open: bool,
    /// How often it has let in since the agent started.
    pub(crate) allowed: u64,
    /// How often it has refused.
    pub(crate) denied: u64,
    /// How often it could not be asked.
    pub(crate) failed: u64,
    /// Whether it could not be asked the last time.
    pub(crate) failing: bool,
    /// When it last could not be asked, and why.
    pub(crate) last_error: Option<(SystemTime, Arc<str>)>,
}

#[derive(Debug, Default)]
pub(super) struct Record {
    allowed: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failing: bool,
    last_error: Option<(SystemTime, Arc<str>)>,
}

impl Record {
    /// It has answered; whether that is news.
    pub(super) fn answered(&self, admitted: bool) -> bool {
        let count = if admitted { &self.allowed } else { &self.denied };
        count.fetch_add(1, Ordering::Relaxed);
        std::mem::take(&mut self.state().failing)
    }

    /// It could not be asked; whether that is news.
    pub(super) fn failed(&self, now: SystemTime, why: &str) -> bool {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let changed = state.last_error.as_ref().is_none_or(|(_, last)| **last != *why);
        let text = match &state.last_error {
            Some((_, last)) if !changed => last.clone(),
            _ => why.into(),
        };
        state.last_error = Some((now, text));
        !std::mem::replace(&mut state.failing, true) || changed
    }

    pub(super) fn standing(&self, settings: &ProviderSettings) -> Standing {
        let state = self.state();
        Standing {
            name: settings.name.clone(),
            address: settings.addr.to_string(),
            form: match settings.form {
                Form::Grpc => "grpc",
                Form::Http(_) => "http",
            },
            fail_open: settings.fail_open,
            allowed: self.allowed.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            failing: state.failing,
            last_error: state.last_error.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
