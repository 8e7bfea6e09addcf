//! TLS configurations for the workloads of this node, made once per certificate and trust, and whether peers that were
//! believed once still are.

mod peers;

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use ambit_core::{
    model::{SpiffeId, TrustDomain},
    reason::Reason,
};
use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use self::peers::Peers;
use super::{
    TunnelError,
    tls::{self, Credentials, Expected, Federation, PeerIdentity, PeerRules, Revocations, TlsSettings},
};
use crate::{
    error::with_causes,
    identity::{Clock, KeyStore},
};

/// Answers with the credentials of a local workload. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wallet(Arc<Shared>);

struct Shared {
    keys: KeyStore,
    settings: TlsSettings,
    clock: Arc<dyn Clock>,
    made: Mutex<HashMap<SpiffeId, Arc<Credentials>>>,
    peers: Peers,
    rules: ArcSwap<PeerRules>,
}

impl Wallet {
    /// Over the keys of this node, with nothing revoked.
    pub(crate) fn new(keys: KeyStore, settings: TlsSettings, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            keys,
            settings,
            clock,
            made: Mutex::default(),
            peers: Peers::default(),
            rules: ArcSwap::default(),
        };
        Self(Arc::new(shared))
    }

    /// The credentials of `id`, waiting a moment if its first certificate is on the way.
    pub(crate) async fn credentials(&self, id: &SpiffeId) -> Result<Held, TunnelError> {
        let generation = self.generation();
        let credentials = self.present(id).await?;
        Ok(Held { credentials, generation })
    }

    async fn present(&self, id: &SpiffeId) -> Result<Arc<Credentials>, TunnelError> {
        let unavailable = |text: String| TunnelError::Handshake { reason: Reason::IdentityUnavailable, text };
        let svid = self.0.keys.svid(id).await.map_err(|error| unavailable(with_causes(&error)))?;
        let rules = self.0.rules.load_full();
        // A panic while the lock is held cannot leave the map half changed.
        let mut made = self.0.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(credentials) = made.get(id)
            && Arc::ptr_eq(credentials.svid(), &svid)
            && Arc::ptr_eq(credentials.rules(), &rules)
        {
            return Ok(credentials.clone());
        }
        let credentials = Credentials::new(svid, &self.0.settings, rules, self.0.clock.clone())
            .map_err(|error| unavailable(with_causes(&error)))?;
        let credentials = Arc::new(credentials);
        made.insert(id.clone(), credentials.clone());
        Ok(credentials)
    }

    /// Forgets the credentials of workloads that are gone.
    pub(crate) fn retain(&self, keep: impl Fn(&SpiffeId) -> bool) {
        self.0.made.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| keep(id));
        self.0.peers.retain_local(keep);
    }

    /// Makes `revocations` what handshakes and live connections are judged by.
    pub(crate) fn revoke(&self, revocations: Revocations) {
        let revocations = Arc::new(revocations);
        let federation = |rules: &PeerRules| rules.federation.clone();
        self.0
            .rules
            .rcu(|rules| PeerRules { revocations: revocations.clone(), federation: federation(rules) });
        self.0.keys.revise();
    }

    /// Makes `roots` what identities of the foreign trust domain `domain` are judged by. The error says which root cannot be
    /// used; then nothing has changed.
    pub(crate) fn federate(
        &self,
        domain: &TrustDomain,
        roots: &[CertificateDer<'static>],
    ) -> Result<(), rustls::Error> {
        // Found out once, as what follows may be tried again.
        Federation::default().with(domain.clone(), roots)?;
        self.0.rules.rcu(|rules| {
            let federation = rules.federation.with(domain.clone(), roots);
            let federation = federation.map_or_else(|_| rules.federation.clone(), Arc::new);
            PeerRules { revocations: rules.revocations.clone(), federation }
        });
        self.0.keys.revise();
        Ok(())
    }

    /// Believes identities of the foreign trust domain `domain` no more.
    pub(crate) fn end_federation(&self, domain: &TrustDomain) {
        self.0.rules.rcu(|rules| PeerRules {
            revocations: rules.revocations.clone(),
            federation: Arc::new(rules.federation.without(domain)),
        });
        self.0.keys.revise();
    }

    /// Who the peer of a finished handshake with `held` is, resumed or not: see [`tls::peer_identity`].
    pub(crate) fn peer(
        &self,
        held: &Held,
        certificates: &[CertificateDer<'_>],
        expected: Option<&Expected>,
    ) -> Result<Arc<PeerIdentity>, (Reason, String)> {
        let peer =
            tls::peer_identity(certificates, expected, &self.0.settings, held.rules(), self.0.clock.now())?;
        // Tickets live no longer than the credentials: a resumed peer was believed under the same trust.
        peer.believed.store(held.generation, Ordering::Relaxed);
        Ok(self.0.peers.one(&held.svid().id, peer))
    }

    /// Who `peer`, another workload of this node, is to `own`, by the certificate that this node holds for it: judged as in a
    /// handshake, but that nobody has to prove whose key it is. Waits a moment for a first certificate.
    pub(crate) async fn vouch(
        &self,
        own: &SpiffeId,
        peer: &SpiffeId,
    ) -> Result<Arc<PeerIdentity>, (Reason, String)> {
        let svid = self.0.keys.svid(peer).await;
        let svid = svid.map_err(|error| (Reason::IdentityUnavailable, with_causes(&error)))?;
        let now = self.0.clock.now();
        if let Some(known) = self.0.peers.local(own, peer).filter(|known| known.is_of(&svid, now)) {
            return self.recheck(own, &known).map(|()| known);
        }
        let rules = self.0.rules.load_full();
        let fresh =
            tls::peer_identity(&svid.chain, Some(&peer.clone().into()), &self.0.settings, &rules, now)?;
        let fresh = self.0.peers.one(own, fresh);
        self.recheck(own, &fresh)?;
        self.0.peers.keep_local(own, fresh.clone());
        Ok(fresh)
    }

    /// Whether `own` still believes a peer that it believed once; costs next to nothing unless roots or revocations have
    /// changed since.
    pub(crate) fn recheck(&self, own: &SpiffeId, peer: &PeerIdentity) -> Result<(), (Reason, String)> {
        let shared = &self.0;
        let generation = self.generation();
        if peer.believed.load(Ordering::Relaxed) == generation {
            return Ok(());
        }
        let Some(trust) = shared.keys.trust(own) else {
            let text = format!(
                "{own} is no identity of this node any more, so nothing tells whether to believe {}",
                peer.id
            );
            return Err((Reason::IdentityUnavailable, text));
        };
        peer.recheck(&trust, &shared.rules.load(), shared.clock.now())?;
        peer.believed.store(generation, Ordering::Relaxed);
        Ok(())
    }

    /// Whether `id` has got another certificate since then: sessions from before it stand on one that others may not trust for
    /// much longer.
    pub(crate) fn renewed_since(&self, id: &SpiffeId, then: SystemTime) -> bool {
        self.0.keys.current(id).is_some_and(|svid| svid.issued > then)
    }

    /// Ends once `own` does not believe `peer` any more, with the reason.
    pub(crate) async fn until_distrusted(&self, own: &SpiffeId, peer: &PeerIdentity) -> (Reason, String) {
        let mut trust = self.subscribe();
        loop {
            if let Err(refused) = self.recheck(own, peer) {
                return refused;
            }
            if trust.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells of changed roots and rules.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.keys.subscribe()
    }

    /// Taken before roots and revocations are read, so that a change in between is judged again.
    fn generation(&self) -> u64 {
        // The store begins with 1, so that no generation is 0, which a new connection has.
        *self.0.keys.subscribe().borrow()
    }
}

/// Credentials and the generation of trust that they stand for.
pub(crate) struct Held {
    credentials: Arc<Credentials>,
    generation: u64,
}

impl Deref for Held {
    type Target = Credentials;

    fn deref(&self) -> &Credentials {
        &self.credentials
    }
}

#[cfg(test)]
mod tests;
