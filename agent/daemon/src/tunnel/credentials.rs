//! TLS configurations for the workloads of this node, made once per certificate.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ambit_core::{model::SpiffeId, reason::Reason};

use super::{
    TunnelError,
    tls::{Credentials, TlsSettings},
};
use crate::identity::{Clock, KeyStore};

/// Answers with the credentials of a local workload. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wallet {
    keys: KeyStore,
    settings: Arc<TlsSettings>,
    clock: Arc<dyn Clock>,
    made: Arc<Mutex<HashMap<SpiffeId, Arc<Credentials>>>>,
}

impl Wallet {
    /// Over the keys of this node.
    pub(crate) fn new(keys: KeyStore, settings: TlsSettings, clock: Arc<dyn Clock>) -> Self {
        Self { keys, settings: Arc::new(settings), clock, made: Arc::default() }
    }

    /// The credentials of `id`, waiting a moment if its first certificate is on the way.
    pub(crate) async fn credentials(&self, id: &SpiffeId) -> Result<Arc<Credentials>, TunnelError> {
        let unavailable = |text: String| TunnelError::Handshake { reason: Reason::IdentityUnavailable, text };
        let svid = self.keys.svid(id).await.map_err(|error| unavailable(error.to_string()))?;
        // A panic while the lock is held cannot leave the map half changed.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(credentials) = made.get(id)
            && credentials.svid().serial == svid.serial
        {
            return Ok(credentials.clone());
        }
        let credentials = Credentials::new(svid, &self.settings, self.clock.clone())
            .map_err(|error| unavailable(error.to_string()))?;
        let credentials = Arc::new(credentials);
        made.insert(id.clone(), credentials.clone());
        Ok(credentials)
    }

    /// Forgets the credentials of workloads that are gone.
    pub(crate) fn retain(&self, keep: impl Fn(&SpiffeId) -> bool) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(id));
    }

    /// What peers must satisfy, and the time.
    pub(crate) fn settings(&self) -> &TlsSettings {
        &self.settings
    }

    /// The time.
    pub(crate) fn now(&self) -> std::time::SystemTime {
        self.clock.now()
    }
}
