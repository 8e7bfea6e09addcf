//! Who a peer has to be.

use std::{fmt, sync::Arc};

use ambit_core::model::SpiffeId;

/// The identity that a peer has to have, or one of those that it may have instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Expected {
    /// That of the workload which is known at the peer's address.
    pub(crate) identity: SpiffeId,
    /// Others, which whoever it was addressed by vouches for.
    pub(crate) instead: Option<Arc<[SpiffeId]>>,
}

impl Expected {
    /// Whether a peer of this identity is expected.
    pub(super) fn includes(&self, id: &SpiffeId) -> bool {
        self.identity == *id || self.instead.as_ref().is_some_and(|others| others.contains(id))
    }
}

impl From<SpiffeId> for Expected {
    fn from(identity: SpiffeId) -> Self {
        Self { identity, instead: None }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.instead.as_deref() {
            None | Some([]) => self.identity.fmt(f),
            Some([other]) => write!(f, "{} or {other}", self.identity),
            Some(others) => {
                write!(f, "{} or one of {} that may be there instead", self.identity, others.len())
            }
        }
    }
}
