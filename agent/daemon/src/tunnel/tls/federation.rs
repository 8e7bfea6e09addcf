//! Trust domains beside our own, each with roots of its own.
//!
//! Promises that a root vouches for its own trust domain only: those of others never for ours, ours never for others.

use std::{collections::HashMap, sync::Arc};

use ambit_core::model::TrustDomain;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::identity::{Fault, Leaf};

/// The roots of foreign trust domains. Immutable: a change makes a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Federation(HashMap<TrustDomain, Arc<RootCertStore>>);

/// Which roots a peer is judged by.
#[derive(Clone, Debug)]
pub(super) struct Anchors {
    /// For our own trust domain and its aliases.
    pub(super) own: Arc<RootCertStore>,
    pub(super) trust_domains: Arc<[TrustDomain]>,
    pub(super) federation: Arc<Federation>,
}

impl Federation {
    /// The same with `roots` for `domain`, instead of those that it had. The error says which root cannot be used.
    pub(crate) fn with(
        &self,
        domain: TrustDomain,
        roots: &[CertificateDer<'static>],
    ) -> Result<Self, rustls::Error> {
        let mut anchors = RootCertStore::empty();
        for root in roots {
            anchors.add(root.clone())?;
        }
        let mut domains = self.0.clone();
        domains.insert(domain, Arc::new(anchors));
        Ok(Self(domains))
    }

    /// The same without `domain`.
    pub(crate) fn without(&self, domain: &TrustDomain) -> Self {
        let mut domains = self.0.clone();
        domains.remove(domain);
        Self(domains)
    }

    /// The roots of `domain`, if it is one of these.
    pub(super) fn roots(&self, domain: &TrustDomain) -> Option<&Arc<RootCertStore>> {
        self.0.get(domain)
    }

    /// Whether identities of `domain` are accepted, where `own` are the domains of our own roots.
    pub(super) fn accepts(&self, own: &[TrustDomain], domain: &TrustDomain) -> bool {
        own.contains(domain) || self.0.contains_key(domain)
    }

    /// All trust domains with their roots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<RootCertStore>)> {
        self.0.iter()
    }
}

impl Anchors {
    /// The roots by which a certificate is judged: those of the trust domain that it names, ours if it names none of those
    /// that are known. Whether it may name that one is asked of [`Anchors::accept`].
    pub(super) fn of(&self, leaf: &Result<Leaf, Fault>) -> &Arc<RootCertStore> {
        let foreign = leaf.as_ref().ok().and_then(|leaf| self.federation.roots(leaf.id.trust_domain()));
        foreign.unwrap_or(&self.own)
    }

    /// Whether identities of this trust domain are accepted at all.
    pub(super) fn accept(&self, domain: &TrustDomain) -> bool {
        self.federation.accepts(&self.trust_domains, domain)
    }
}
