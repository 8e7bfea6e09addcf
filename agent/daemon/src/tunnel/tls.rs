//! TLS of the tunnel: configurations made from one workload's credentials, and who a peer is.
//!
//! Promises TLS 1.3 only, a verified client certificate on every connection, and exactly the expected identity on the other
//! side. Leaves records, time-outs and the check of the negotiated ALPN to the tunnel; holds no socket.

mod expected;
mod federation;
mod outside;
mod reason;
mod revocation;
mod verify;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ambit_core::{
    model::{SpiffeId, TrustDomain},
    reason::Reason,
};
use rustls::{
    ClientConfig, ServerConfig,
    client::{ClientSessionMemoryCache, Resumption},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, Ticketer, cipher_suite, kx_group},
    },
    server::ProducesTickets,
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

pub(super) use self::outside::outside_reason;
pub(crate) use self::{
    expected::Expected,
    federation::Federation,
    outside::{Outside, OutsideTls},
    reason::handshake_reason,
    revocation::Revocations,
};
use self::{
    federation::Anchors,
    verify::{ClientVerifier, Refusal, ServerVerifier},
};
use super::secret::Ear;
use crate::identity::{Clock, Leaf, Svid, TrustBundle};

/// The one application protocol offered and accepted.
pub(crate) const ALPN: &[u8] = b"ambit/1";

/// Peers whose configuration is kept ready, per workload.
const MAX_CLIENT_CONFIGS: usize = 256;
/// Tickets kept per expected identity; rustls keeps up to eight for each server name.
const MAX_TICKETS: usize = 16 * 8;

/// What of TLS an operator can set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    /// Use of X25519MLKEM768.
    pub(crate) post_quantum: PostQuantum,
    /// Our trust domain, then its aliases; identities of others are refused unless they are federated.
    pub(crate) trust_domains: Vec<TrustDomain>,
}

/// What peers are judged by beside the roots of the workload that they talk to. Immutable: a change makes a new one.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeerRules {
    /// What has been revoked.
    pub(crate) revocations: Arc<Revocations>,
    /// The roots of foreign trust domains.
    pub(crate) federation: Arc<Federation>,
}

/// Use of the hybrid key exchange X25519MLKEM768 beside X25519 and P-256.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PostQuantum {
    /// Not at all.
    Off,
    /// If the peer prefers it. X25519 comes first: it costs less.
    #[default]
    Offer,
    /// If the peer can.
    Prefer,
    /// Or no connection.
    Require,
}

/// One workload's credentials in the form of TLS configurations. Made once for each SVID: tickets are good for it
/// alone, and die with it.
pub(crate) struct Credentials {
    svid: Arc<Svid>,
    server: Arc<ServerConfig>,
    /// What all client configurations have in common.
    client: ClientConfig,
    clients: Mutex<ClientConfigs>,
    shared: Shared,
}

/// A peer as its certificate shows it.
#[derive(Debug)]
pub(crate) struct PeerIdentity {
    /// The workload.
    pub(crate) id: SpiffeId,
    /// The end of its certificate: no connection should count on it for longer.
    pub(crate) not_after: SystemTime,
    /// What the peer showed, leaf first: to be judged again when roots or revocations change.
    chain: Vec<CertificateDer<'static>>,
    validity: (SystemTime, SystemTime),
    /// The generation of trust under which the chain was last believed.
    pub(super) believed: AtomicU64,
}

impl PeerIdentity {
    /// Whether `other` has shown the same certificates.
    pub(super) fn showed(&self, other: &Self) -> bool {
        self.chain == other.chain
    }

    /// Whether it is what `svid` shows, and still within its time.
    pub(super) fn is_of(&self, svid: &Svid, now: SystemTime) -> bool {
        self.chain == svid.chain && (self.validity.0..=self.validity.1).contains(&now)
    }

    /// Whether a peer that was believed once still is, under these roots and revocations. Its certificate's end is no
    /// matter here: connections outlive it.
    pub(super) fn recheck(
        &self,
        trust: &TrustBundle,
        rules: &PeerRules,
        now: SystemTime,
    ) -> Result<(), (Reason, String)> {
        let (from, to) = self.validity;
        let at = now.max(from).min(to);
        let withdrawn = |why: String| {
            (
                Reason::RootWithdrawn,
                format!("the certificate of {} leads to no trusted root any more: {why}", self.id),
            )
        };
        let anchors = match rules.federation.roots(self.id.trust_domain()) {
            Some(foreign) => foreign.clone(),
            None => Arc::new(trust.anchors().map_err(|error| withdrawn(error.to_string()))?),
        };
        revocation::verify_again(&self.chain, &anchors, at).map_err(withdrawn)?;
        rules
            .revocations
            .check(&self.chain, &anchors, at)
            .map_err(|refusal: Refusal| (refusal.reason, refusal.text))
    }
}

/// Why credentials cannot be put to use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A root of the trust bundle cannot be read.
    #[error("the trust bundle of {id} has an unusable root")]
    Roots {
        /// The workload.
        id: SpiffeId,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// Certificate and key do not fit together, or are of a kind that TLS 1.3 does not know.
    #[error("the certificate or key of {id} cannot be used")]
    Certificate {
        /// The workload.
        id: SpiffeId,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// The verifier of client certificates cannot be built.
    #[error("cannot verify clients with the trust bundle of {id}")]
    Verifier {
        /// The workload.
        id: SpiffeId,
        /// The cause.
        #[source]
        source: rustls::client::VerifierBuilderError,
    },
    /// The library has no randomness, or not the algorithms asked for.
    #[error("the TLS library cannot be set up")]
    Library(#[source] rustls::Error),
}

impl Credentials {
    /// Makes the configurations for `svid`. Validity is judged by `clock`, here and in every handshake.
    pub(crate) fn new(
        svid: Arc<Svid>,
        settings: &TlsSettings,
        rules: Arc<PeerRules>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TlsError> {
        let id = || svid.id.clone();
        let provider = Arc::new(provider(settings.post_quantum));
        let roots = svid.trust.anchors().map_err(|source| TlsError::Roots { id: id(), source })?;
        let certified = CertifiedKey::from_der(svid.chain.clone(), svid.key.der().clone_key(), &provider)
            .map_err(|source| TlsError::Certificate { id: id(), source })?;
        let shared = Shared {
            provider,
            clock: Arc::new(HandshakeClock(clock)),
            anchors: Arc::new(Anchors {
                own: Arc::new(roots),
                trust_domains: settings.trust_domains.clone().into(),
                federation: rules.federation.clone(),
            }),
            rules,
            own: Arc::new(SingleCertAndKey::from(certified)),
        };
        let server = Arc::new(shared.server_config(&svid)?);
        let client = shared.client_config(&svid.id.clone().into()).map_err(TlsError::Library)?;
        Ok(Self { svid, server, client, clients: Mutex::default(), shared })
    }

    /// The SVID that this was made from.
    pub(crate) fn svid(&self) -> &Arc<Svid> {
        &self.svid
    }

    /// The rules that handshakes heed.
    pub(super) fn rules(&self) -> &Arc<PeerRules> {
        &self.shared.rules
    }

    /// For connections to this workload. The client must show a certificate with an identity of our trust domains.
    /// A client that offers no ALPN is not refused by rustls: check for [`ALPN`] after the handshake.
    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For connections from this workload to `expected`, and the name under which rustls keeps tickets. No server name is
    /// sent. Where one identity runs on several nodes, `ServerName::from(pod_ip)` in place of the name keeps the
    /// tickets of their agents apart; verification does not depend on it.
    pub(crate) fn client_config(&self, expected: &Expected) -> (Arc<ClientConfig>, ServerName<'static>) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let config = clients.ready.get(expected).cloned().unwrap_or_else(|| {
            let mut config = self.client.clone();
            config.dangerous().set_certificate_verifier(self.shared.server_verifier(expected));
            config.resumption = fresh_tickets();
            let config = Arc::new(config);
            clients.insert(expected.clone(), config.clone());
            config
        });
        (config, ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("id", &self.svid.id).finish_non_exhaustive()
    }
}

/// Who the peer is, by the certificates of a finished handshake. To be asked after every handshake: a resumed one
/// skips the verifiers, and a certificate may have ended, or the expectation changed, since the ticket was made.
///
/// Takes exactly one URI SAN of SPIFFE form in a trust domain that is accepted, valid at `now`, and one that is `expected` where
/// somebody is. Does not verify the chain again.
pub(crate) fn peer_identity(
    certificates: &[CertificateDer<'_>],
    expected: Option<&Expected>,
    settings: &TlsSettings,
    rules: &PeerRules,
    now: SystemTime,
) -> Result<PeerIdentity, (Reason, String)> {
    let check = || {
        let leaf = certificates.first().ok_or_else(Refusal::missing)?;
        let leaf = Leaf::read(leaf)?;
        verify::check_validity(&leaf, now)?;
        let accepted = |domain: &TrustDomain| rules.federation.accepts(&settings.trust_domains, domain);
        verify::check_identity(&leaf, expected, accepted)?;
        Ok(PeerIdentity {
            id: leaf.id,
            not_after: leaf.not_after,
            chain: certificates.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            validity: (leaf.not_before, leaf.not_after),
            believed: AtomicU64::new(0),
        })
    };
    check().map_err(|refusal: Refusal| (refusal.reason, refusal.text))
}

/// What a workload's configurations share. Resumption demands the very same resolver and verifiers.
struct Shared {
    provider: Arc<CryptoProvider>,
    clock: Arc<HandshakeClock>,
    anchors: Arc<Anchors>,
    rules: Arc<PeerRules>,
    own: Arc<SingleCertAndKey>,
}

impl Shared {
    fn server_config(&self, svid: &Svid) -> Result<ServerConfig, TlsError> {
        let verifier = ClientVerifier::new(&self.anchors, &self.rules.revocations, &self.provider)
            .map_err(|source| TlsError::Verifier { id: svid.id.clone(), source })?;
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Library)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(self.own.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ticketer = Arc::new(BoundedTicketer {
            inner: Ticketer::new().map_err(TlsError::Library)?,
            clock: self.clock.clone(),
            not_after: svid.not_after,
        });
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Ear);
        Ok(config)
    }

    fn client_config(&self, expected: &Expected) -> Result<ClientConfig, rustls::Error> {
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.server_verifier(expected))
            .with_client_cert_resolver(self.own.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.enable_early_data = false;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Ear);
        config.resumption = fresh_tickets();
        Ok(config)
    }

    fn server_verifier(&self, expected: &Expected) -> Arc<ServerVerifier> {
        Arc::new(ServerVerifier {
            anchors: self.anchors.clone(),
            revocations: self.rules.revocations.clone(),
            algorithms: self.provider.signature_verification_algorithms,
            expected: expected.clone(),
        })
    }
}

/// The configurations that are ready, oldest first out when there are too many.
#[derive(Default)]
struct ClientConfigs {
    ready: HashMap<Expected, Arc<ClientConfig>>,
    order: VecDeque<Expected>,
}

impl ClientConfigs {
    fn insert(&mut self, expected: Expected, config: Arc<ClientConfig>) {
        if self.order.len() >= MAX_CLIENT_CONFIGS
            && let Some(oldest) = self.order.pop_front()
        {
            self.ready.remove(&oldest);
        }
        self.order.push_back(expected.clone());
        self.ready.insert(expected, config);
    }
}

/// A ticketer whose tickets are good no longer than the certificate under which they were given.
#[derive(Debug)]
struct BoundedTicketer {
    inner: Arc<dyn ProducesTickets>,
    clock: Arc<HandshakeClock>,
    not_after: SystemTime,
}

impl BoundedTicketer {
    fn left(&self) -> Option<Duration> {
        self.not_after.duration_since(self.clock.0.now()).ok().filter(|left| left.as_secs() > 0)
    }
}

impl ProducesTickets for BoundedTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        let left = self.left().map_or(0, |left| left.as_secs());
        self.inner.lifetime().min(u32::try_from(left).unwrap_or(u32::MAX))
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.left().and_then(|_| self.inner.encrypt(plain))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.left().and_then(|_| self.inner.decrypt(cipher))
    }
}

/// Our clock as rustls asks for it.
struct HandshakeClock(Arc<dyn Clock>);

impl TimeProvider for HandshakeClock {
    fn current_time(&self) -> Option<UnixTime> {
        self.0.now().duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
    }
}

impl fmt::Debug for HandshakeClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandshakeClock")
    }
}

fn provider(post_quantum: PostQuantum) -> CryptoProvider {
    use kx_group::{SECP256R1, X25519, X25519MLKEM768};
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: match post_quantum {
            PostQuantum::Off => vec![X25519, SECP256R1],
            PostQuantum::Offer => vec![X25519, X25519MLKEM768, SECP256R1],
            PostQuantum::Prefer => vec![X25519MLKEM768, X25519, SECP256R1],
            PostQuantum::Require => vec![X25519MLKEM768],
        },
        ..aws_lc_rs::default_provider()
    }
}

fn fresh_tickets() -> Resumption {
    Resumption::store(Arc::new(ClientSessionMemoryCache::new(MAX_TICKETS)))
}

#[cfg(test)]
mod tests;
