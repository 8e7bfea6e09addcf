//! Metrics and readiness of certificates and roots.

use std::collections::{HashMap, HashSet};

use ambit_core::model::SpiffeId;

use crate::{
    identity::{KeyStore, Root, roots},
    instance::{Gate, Readiness},
    telemetry::Telemetry,
};

/// Watches when certificates and roots end.
pub(super) struct ExpiryWatch {
    keys: KeyStore,
    telemetry: Telemetry,
    readiness: Readiness,
    /// Held while a certificate is about to end, or has, without being renewed.
    late: Option<Gate>,
    /// What telemetry was last told of, to take back what is gone.
    identities: HashSet<SpiffeId>,
    roots: HashSet<String>,
}

impl ExpiryWatch {
    pub(super) fn new(keys: KeyStore, telemetry: Telemetry, readiness: Readiness) -> Self {
        Self { keys, telemetry, readiness, late: None, identities: HashSet::new(), roots: HashSet::new() }
    }

    /// Tells how they stand.
    pub(super) fn look(&mut self) {
        let identities = self.keys.status();
        let counts = self.keys.counts();
        self.telemetry.renewals(counts.issued, counts.failed, counts.skewed);
        let late = identities.iter().filter(|identity| identity.late).count();
        self.telemetry.late_certificates(late);
        match (late, &self.late) {
            (0, Some(_)) => self.late = None,
            (1.., None) => {
                tracing::error!(
                    late,
                    "certificates are past 90 % of their life and not renewed; see ambit certs"
                );
                self.late = Some(self.readiness.gate("certificates"));
            }
            _ => {}
        }
        let roots: HashMap<String, Root> =
            roots(&identities).into_iter().map(|root| (root.fingerprint.clone(), root)).collect();
        for gone in self.roots.iter().filter(|root| !roots.contains_key(*root)) {
            self.telemetry.root(gone, None);
        }
        for root in roots.values() {
            self.telemetry.root(&root.fingerprint, Some(root.not_after));
        }
        let held: HashSet<SpiffeId> = identities.iter().map(|identity| identity.id.clone()).collect();
        for gone in self.identities.difference(&held) {
            self.telemetry.certificate(gone, None);
        }
        for identity in &identities {
            self.telemetry.certificate(&identity.id, identity.not_after);
        }
        self.identities = held;
        self.roots = roots.into_keys().collect();
    }
}
