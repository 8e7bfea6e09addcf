//! Metrics and readiness of certificates and roots.

use std::{
    collections::{HashMap, HashSet},
    time::SystemTime,
};

use ambit_core::model::SpiffeId;

use crate::{
    identity::{IdentityState, IdentityStatus, KeyStore, Root, roots},
    instance::{Gate, Readiness},
    telemetry::Telemetry,
};

/// Watches whether there are certificates, and when they and their roots end.
pub(super) struct ExpiryWatch {
    keys: KeyStore,
    telemetry: Telemetry,
    readiness: Readiness,
    /// Held until the pods that are there have a certificate, while none can be had, and while one ends, or has ended,
    /// without being renewed.
    gate: Option<Gate>,
    /// Whether there were certificates, or nobody to have one.
    served: bool,
    /// What telemetry was last told of, to take back what is gone.
    identities: HashSet<SpiffeId>,
    roots: HashSet<String>,
}

impl ExpiryWatch {
    pub(super) fn new(keys: KeyStore, telemetry: Telemetry, readiness: Readiness) -> Self {
        let gate = Some(readiness.gate("certificates"));
        Self {
            keys,
            telemetry,
            readiness,
            gate,
            served: false,
            identities: HashSet::new(),
            roots: HashSet::new(),
        }
    }

    /// Tells how they stand.
    pub(super) fn look(&mut self) {
        let identities = self.keys.status();
        let counts = self.keys.counts();
        self.telemetry.renewals(counts.issued, counts.failed, counts.skewed);
        let late = identities.iter().filter(|identity| identity.late).count();
        let now = SystemTime::now();
        let missing = identities.iter().filter(|identity| identity.cut_off(now).is_some()).count();
        self.telemetry.late_certificates(late);
        self.telemetry.missing_certificates(missing);
        self.served |= identities.is_empty() || identities.iter().any(is_valid);
        let none = missing > 0 && !identities.iter().any(is_valid);
        match (late > 0 || none || !self.served, &self.gate) {
            (false, Some(_)) => self.gate = None,
            (true, None) => {
                tracing::error!(
                    late,
                    missing,
                    identities = identities.len(),
                    "certificates are past 90 % of their life and not renewed, or none can be had; see ambit status"
                );
                self.gate = Some(self.readiness.gate("certificates"));
            }
            _ => {}
        }
        let roots: HashMap<String, Root> =
            roots(&identities).into_iter().map(|root| (root.fingerprint.clone(), root)).collect();
        for gone in self.roots.iter().filter(|root| !roots.contains_key(*root)) {
            self.telemetry.root(gone, None);
        }
        for root in roots.values() {
            let life = root.not_before..root.not_after;
            self.telemetry.root(&root.fingerprint, Some((life, root.certificates)));
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

fn is_valid(identity: &IdentityStatus) -> bool {
    identity.state == IdentityState::Valid
}
