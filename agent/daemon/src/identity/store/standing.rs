//! How the identities of this node stand: for status, metrics, readiness, and events on their pods.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use ambit_core::model::SpiffeId;

use crate::identity::Svid;

/// An issuer that has not answered for so long is told of; one that answers at once is not.
const PATIENCE: Duration = Duration::from_secs(2);

/// How one identity stands.
#[derive(Clone, Debug)]
pub(crate) struct IdentityStatus {
    /// The identity.
    pub(crate) id: SpiffeId,
    /// Serial of the certificate in use.
    pub(crate) serial: Option<String>,
    /// Start of its validity.
    pub(crate) not_before: Option<SystemTime>,
    /// End of its validity.
    pub(crate) not_after: Option<SystemTime>,
    /// When the issuer will be asked next; `None` while it is being asked.
    pub(crate) next_renewal: Option<SystemTime>,
    /// Why the last attempt failed, causes included; cleared by success.
    pub(crate) last_error: Option<String>,
    /// Whether connections can be made.
    pub(crate) state: IdentityState,
    /// The certificate is past 90 % of its life, or expired, and was not renewed.
    pub(crate) late: bool,
    /// Since when a certificate is wanted for it.
    pub(crate) wanted_since: SystemTime,
    /// The credentials in use, expired ones too.
    pub(crate) svid: Option<Arc<Svid>>,
}

/// Whether an identity can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdentityState {
    /// No certificate yet.
    Pending,
    /// A valid certificate is in use.
    Valid,
    /// The certificate has expired and could not be renewed.
    Expired,
}

impl IdentityStatus {
    /// Why its pods can make no connections and take none, if that is so at `now`.
    pub(crate) fn cut_off(&self, now: SystemTime) -> Option<String> {
        let error = self.last_error.as_deref();
        match self.state {
            IdentityState::Valid => None,
            IdentityState::Expired => Some(format!(
                "its certificate has expired: {}",
                error.unwrap_or("its issuer has given no newer one")
            )),
            IdentityState::Pending if error.is_some() => error.map(str::to_owned),
            IdentityState::Pending => {
                let long = now.duration_since(self.wanted_since).is_ok_and(|since| since >= PATIENCE);
                long.then(|| "the issuer has not answered yet".to_owned())
            }
        }
    }

    /// Why it is about to be cut off, if it is.
    pub(crate) fn endangered(&self) -> Option<String> {
        let endangered = self.late && self.state == IdentityState::Valid;
        let error = self.last_error.as_deref().unwrap_or("its issuer has given no newer one");
        endangered.then(|| format!("its certificate is past 90 % of its life and is not renewed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: IdentityState, error: Option<&str>, late: bool) -> IdentityStatus {
        IdentityStatus {
            id: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            serial: None,
            not_before: None,
            not_after: None,
            next_renewal: None,
            last_error: error.map(str::to_owned),
            state,
            late,
            wanted_since: SystemTime::UNIX_EPOCH,
            svid: None,
        }
    }

    #[test]
    fn whoever_has_no_certificate_is_cut_off_and_says_why() {
        use IdentityState::{Expired, Pending, Valid};
        let later = SystemTime::UNIX_EPOCH + PATIENCE;
        for (state, error, at, expected) in [
            (Valid, None, later, None),
            (Valid, Some("refused"), later, None),
            (Pending, None, SystemTime::UNIX_EPOCH, None),
            (Pending, None, later, Some("not answered")),
            (Pending, Some("refused"), SystemTime::UNIX_EPOCH, Some("refused")),
            (Expired, None, later, Some("no newer one")),
            (Expired, Some("refused"), later, Some("expired: refused")),
        ] {
            let told = status(state, error, false).cut_off(at);
            let fits = match (&told, expected) {
                (Some(told), Some(expected)) => told.contains(expected),
                (told, expected) => told.is_none() && expected.is_none(),
            };
            assert!(fits, "{state:?} {error:?}: {told:?}");
        }
    }

    #[test]
    fn a_late_renewal_is_told_before_the_end() {
        assert!(status(IdentityState::Valid, None, false).endangered().is_none());
        let told = status(IdentityState::Valid, Some("refused"), true).endangered().unwrap();
        assert!(told.ends_with("refused"), "{told}");
        assert!(status(IdentityState::Expired, None, true).endangered().is_none(), "that is past");
    }
}
