//! The `istio_tcp_*` family of Istio's standard metrics: one [`Series`] of counters for each label set.
//!
//! A connection looks its series up once and keeps it. Labels name workloads, never addresses; the number of label sets
//! is bounded: idle ones make room, and what still does not fit is counted under `unknown`.

mod recent;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_core::{
    model::{ServiceName, SpiffeId, Workload},
    reason::Reason,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::ConstCounter},
};

use self::recent::Recent;
use super::{Direction, Meta, Party, cluster_of};

/// The most label sets kept. One takes about 1 KB here and 5 KB of a scrape.
pub(super) const MAX_SERIES: usize = 4_000;
/// How long a series without connections stays at least: several scrapes.
pub(super) const MIN_IDLE: Duration = Duration::from_secs(600);
/// How often the table is searched for idle series while it is full.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

pub(super) const UNKNOWN: &str = "unknown";

/// The `response_flags` of a connection that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    None,
    Deny,
    Connect,
    TlsFailure,
    IdentityError,
    CertRevoked,
}

impl Flag {
    const ALL: [Self; 6] =
        [Self::None, Self::Deny, Self::Connect, Self::TlsFailure, Self::IdentityError, Self::CertRevoked];

    pub(super) fn of(reason: Reason) -> Self {
        match reason {
            Reason::MtlsRequired
            | Reason::PolicyDenied
            | Reason::EgressDenied
            | Reason::TokenRefused
            | Reason::ProviderRefused => Self::Deny,
            Reason::CertificateMissing
            | Reason::CertificateExpired
            | Reason::CertificateNotYetValid
            | Reason::CertificateUntrusted
            | Reason::CertificateIdentity
            | Reason::CertificateInvalid
            | Reason::IdentityMismatch
            | Reason::TrustDomain
            | Reason::RootWithdrawn
            | Reason::MtlsUnavailable
            | Reason::CredentialsUnavailable
            | Reason::TlsHandshake => Self::TlsFailure,
            Reason::IdentityUnavailable => Self::IdentityError,
            Reason::CertificateRevoked => Self::CertRevoked,
            Reason::ProtocolError
            | Reason::Timeout
            | Reason::UnknownPort
            | Reason::NoEndpoint
            | Reason::Unreachable
            | Reason::ConnectionRefused
            | Reason::Overloaded
            | Reason::NotReady
            | Reason::RuleUnusable
            | Reason::ConnectionLimit
            | Reason::NameUnresolved
            | Reason::OriginalDstUnknown => Self::Connect,
            _ => Self::None,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

/// What tells one series from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TrafficLabels {
    pub(super) direction: Direction,
    source: PartyLabels,
    destination: PartyLabels,
    service: Option<ServiceName>,
    /// As metrics have it: plaintext is unknown to Istio.
    security: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct PartyLabels {
    workload: Option<WorkloadLabels>,
    principal: Option<SpiffeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WorkloadLabels {
    name: Box<str>,
    namespace: Arc<str>,
    canonical_service: Box<str>,
    canonical_revision: Box<str>,
    cluster: Box<str>,
}

impl TrafficLabels {
    pub(super) fn of(meta: &Meta) -> Self {
        Self {
            direction: meta.direction,
            source: PartyLabels::of(&meta.source),
            destination: PartyLabels::of(&meta.destination),
            service: meta.service.clone(),
            security: if meta.security.is_proven() { meta.security.label() } else { UNKNOWN },
        }
    }

    pub(super) fn unknown(direction: Direction) -> Self {
        Self {
            direction,
            source: PartyLabels::default(),
            destination: PartyLabels::default(),
            service: None,
            security: UNKNOWN,
        }
    }
}

impl PartyLabels {
    fn of(party: &Party) -> Self {
        let workload = party.workload.as_deref().map(|workload: &Workload| WorkloadLabels {
            name: workload.workload_name().into(),
            namespace: workload.name.namespace.clone(),
            canonical_service: workload.canonical_name().into(),
            canonical_revision: workload.canonical_revision().into(),
            cluster: cluster_of(&workload.name).into(),
        });
        Self { workload, principal: party.identity.clone() }
    }
}

/// The counters of one label set.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) opened: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    failed: [AtomicU64; Flag::ALL.len()],
    epoch: Instant,
    /// Milliseconds since `epoch`.
    last_used: AtomicU64,
}

impl Series {
    fn new(now: Instant) -> Self {
        Self {
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            failed: Default::default(),
            epoch: now,
            last_used: AtomicU64::new(0),
        }
    }

    /// Counts a connection that failed.
    pub(super) fn fail(&self, flag: Flag) {
        self.failed[flag as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps the series from counting as idle.
    pub(super) fn touch(&self, now: Instant) {
        let age = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        self.last_used.fetch_max(age, Ordering::Relaxed);
    }

    fn idle(&self, now: Instant) -> Duration {
        let last_used = Duration::from_millis(self.last_used.load(Ordering::Relaxed));
        now.saturating_duration_since(self.epoch).saturating_sub(last_used)
    }
}

type Table = HashMap<Arc<TrafficLabels>, Arc<Series>>;

/// All series.
#[derive(Debug)]
pub(super) struct Traffic {
    table: RwLock<Shelf>,
    /// Where connections go that found no room, by direction.
    overflow: [(Arc<TrafficLabels>, Arc<Series>); 2],
    recent: Recent,
}

#[derive(Debug)]
struct Shelf {
    series: Table,
    swept: Option<Instant>,
}

impl Traffic {
    pub(super) fn new() -> Self {
        let overflow = [Direction::Outbound, Direction::Inbound].map(|direction| {
            (Arc::new(TrafficLabels::unknown(direction)), Arc::new(Series::new(Instant::now())))
        });
        let table = RwLock::new(Shelf { series: Table::new(), swept: None });
        Self { table, overflow, recent: Recent::default() }
    }

    /// The counters for connections such as `meta` tells of, made on first use.
    pub(super) fn series_of(&self, meta: &Meta) -> Arc<Series> {
        if let Some(series) = self.recent.series(meta) {
            series.touch(Instant::now());
            return series;
        }
        let series = self.series(TrafficLabels::of(meta));
        if !self.is_overflow(&series) {
            self.recent.remember(meta, &series);
        }
        series
    }

    fn is_overflow(&self, series: &Arc<Series>) -> bool {
        self.overflow.iter().any(|(_, overflow)| Arc::ptr_eq(overflow, series))
    }

    /// The counters for `labels`, made on first use.
    pub(super) fn series(&self, labels: TrafficLabels) -> Arc<Series> {
        self.series_at(labels, Instant::now())
    }

    pub(super) fn series_at(&self, labels: TrafficLabels, now: Instant) -> Arc<Series> {
        if let Some(series) = self.table.read().unwrap_or_else(PoisonError::into_inner).series.get(&labels) {
            series.touch(now);
            return series.clone();
        }
        let overflow = &self.overflow[labels.direction as usize];
        if *overflow.0 == labels {
            return overflow.1.clone();
        }
        let mut shelf = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if shelf.series.len() >= MAX_SERIES && !shelf.series.contains_key(&labels) {
            shelf.sweep(now);
            if shelf.series.len() >= MAX_SERIES {
                return overflow.1.clone();
            }
        }
        shelf.series.entry(Arc::new(labels)).or_insert_with(|| Arc::new(Series::new(now))).clone()
    }

    /// Every series in use, copied out so that encoding holds no lock.
    fn snapshot(&self) -> Vec<(Arc<TrafficLabels>, Arc<Series>)> {
        let shelf = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let named = shelf.series.iter().map(|(labels, series)| (labels.clone(), series.clone()));
        let unnamed = self.overflow.iter().filter(|(_, series)| series.used()).cloned();
        named.chain(unnamed).collect()
    }
}

impl Shelf {
    /// Drops series that no connection holds and that have been idle for long, at most every ten seconds.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.series.retain(|_, series| Arc::strong_count(series) > 1 || series.idle(now) < MIN_IDLE);
    }
}

impl Series {
    fn used(&self) -> bool {
        self.opened.load(Ordering::Relaxed) > 0
            || self.failed.iter().any(|failed| failed.load(Ordering::Relaxed) > 0)
    }
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Field = fn(&Series) -> &AtomicU64;
        const COUNTERS: [(&str, &str, Field); 4] = [
            ("istio_tcp_connections_opened", "Connections opened.", |series| &series.opened),
            ("istio_tcp_connections_closed", "Connections closed.", |series| &series.closed),
            ("istio_tcp_received_bytes", "Payload bytes from client to server.", |series| &series.received),
            ("istio_tcp_sent_bytes", "Payload bytes from server to client.", |series| &series.sent),
        ];
        let all = self.snapshot();
        for (name, help, field) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, series) in &all {
                let value = field(series).load(Ordering::Relaxed);
                let labels = FlaggedLabels { labels, flag: Flag::None };
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "istio_tcp_connections_failed",
            "Connections that were refused or broke.",
            None,
            MetricType::Counter,
        )?;
        for (labels, series) in &all {
            for flag in Flag::ALL {
                let value = series.failed[flag as usize].load(Ordering::Relaxed);
                if value > 0 {
                    let labels = FlaggedLabels { labels, flag };
                    ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

struct FlaggedLabels<'a> {
    labels: &'a TrafficLabels,
    flag: Flag,
}

impl EncodeLabelSet for FlaggedLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.labels.encode(encoder, "tcp", self.flag.label())
    }
}

impl TrafficLabels {
    /// What all of Istio's metrics have.
    pub(super) fn encode(
        &self,
        encoder: &mut LabelSetEncoder<'_>,
        request_protocol: &str,
        response_flags: &str,
    ) -> fmt::Result {
        let Self { direction, source, destination, service, security } = self;
        let mut put = |key: &str, value: &str| (key, value).encode(encoder.encode_label());
        put("reporter", direction.reporter())?;
        encode_party(&mut put, source, SOURCE_KEYS)?;
        put("destination_service", service.as_ref().map_or(UNKNOWN, |service| &service.host))?;
        put(
            "destination_service_namespace",
            service.as_ref().map_or(UNKNOWN, |service| &service.name.namespace),
        )?;
        put("destination_service_name", service.as_ref().map_or(UNKNOWN, |service| &service.name.name))?;
        encode_party(&mut put, destination, DESTINATION_KEYS)?;
        put("request_protocol", request_protocol)?;
        put("response_flags", response_flags)?;
        put("connection_security_policy", security)?;
        ["source_region", "source_zone", "destination_region", "destination_zone"]
            .into_iter()
            .try_for_each(|key| put(key, UNKNOWN))
    }
}

/// Workload, namespace, principal, canonical service, canonical revision, app, version, cluster.
const SOURCE_KEYS: [&str; 8] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_canonical_service",
    "source_canonical_revision",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION_KEYS: [&str; 8] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

fn encode_party(
    put: &mut impl FnMut(&str, &str) -> fmt::Result,
    party: &PartyLabels,
    keys: [&str; 8],
) -> fmt::Result {
    let principal = party.principal.as_ref().map(ToString::to_string);
    let principal = principal.as_deref().unwrap_or(UNKNOWN);
    let values = match &party.workload {
        Some(WorkloadLabels {
            name,
            namespace,
            canonical_service: service,
            canonical_revision: revision,
            cluster,
        }) => [&**name, &**namespace, principal, service, revision, service, revision, cluster],
        None => [UNKNOWN, UNKNOWN, principal, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN],
    };
    keys.into_iter().zip(values).try_for_each(|(key, value)| put(key, value))
}
