//! The HTTP family of Istio's standard metrics: how many requests, how long, how big.
//!
//! Series are grouped by what a connection has in common; a connection looks its group up once. Groups, the series of a group
//! and all series are bounded: idle groups make room, and what still finds none is counted under `unknown`.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{
    Direction,
    traffic::{MIN_IDLE, TrafficLabels, UNKNOWN},
};

/// Series in all. Three histograms make one about 60 KB of a scrape.
const MAX_SERIES: usize = 400;
/// Series of one group: an application picks its status codes as it likes, and must leave room for others.
const MAX_OF_GROUP: usize = 24;
/// How often the table is searched for idle groups while it is full.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Upper bounds of the histograms, as Envoy's; the last is open.
const BOUNDS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    f64::MAX,
];

/// How a request ended, in Envoy's words for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ResponseFlag {
    /// With an answer.
    #[default]
    None,
    /// The client went away.
    DownstreamClosed,
    /// What the client sent is no request.
    ProtocolError,
    /// The application could not be connected to.
    UpstreamFailure,
    /// The application went away before it had answered.
    UpstreamClosed,
    /// What the application answered is no answer.
    UpstreamProtocolError,
    /// An external provider refused it.
    Unauthorized,
    /// The agent has too much to do.
    Overloaded,
}

impl ResponseFlag {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::DownstreamClosed => "DC",
            Self::ProtocolError => "DPE",
            Self::UpstreamFailure => "UF",
            Self::UpstreamClosed => "UC",
            Self::UpstreamProtocolError => "UPE",
            Self::Unauthorized => "UAEX",
            Self::Overloaded => "OM",
        }
    }
}

/// What tells the series of a group apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) grpc: bool,
    /// 0 where there was no answer.
    pub(super) status: u16,
    /// As far as it is one of gRPC's 17.
    pub(super) grpc_status: Option<u8>,
    pub(super) flag: ResponseFlag,
}

/// What is counted of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    pub(super) duration: Duration,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) request_messages: u64,
    pub(super) response_messages: u64,
}

/// The series of connections that have the same labels.
#[derive(Debug)]
pub(super) struct Group {
    labels: Arc<TrafficLabels>,
    /// `None` is what found no room.
    series: RwLock<Vec<(Option<Outcome>, Arc<Series>)>>,
    /// How many there are in all groups.
    total: Arc<AtomicUsize>,
    epoch: Instant,
    /// Milliseconds since `epoch`.
    last_used: AtomicU64,
}

#[derive(Debug, Default)]
struct Series {
    requests: AtomicU64,
    milliseconds: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// All groups.
#[derive(Debug)]
pub(super) struct Requests {
    shelf: RwLock<Shelf>,
    overflow: [Arc<Group>; 2],
    total: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Shelf {
    groups: HashMap<Arc<TrafficLabels>, Arc<Group>>,
    swept: Option<Instant>,
}

impl Requests {
    pub(super) fn new() -> Self {
        let total = Arc::new(AtomicUsize::new(0));
        let overflow = [Direction::Outbound, Direction::Inbound].map(|direction| {
            Arc::new(Group::new(Arc::new(TrafficLabels::unknown(direction)), total.clone(), Instant::now()))
        });
        Self { shelf: RwLock::default(), overflow, total }
    }

    /// The group of connections with these labels, made on first use.
    pub(super) fn group(&self, labels: TrafficLabels, now: Instant) -> Arc<Group> {
        let found = self.shelf.read().unwrap_or_else(PoisonError::into_inner).groups.get(&labels).cloned();
        if let Some(group) = found {
            group.touch(now);
            return group;
        }
        let mut shelf = self.shelf.write().unwrap_or_else(PoisonError::into_inner);
        if self.total.load(Ordering::Relaxed) >= MAX_SERIES || shelf.groups.len() >= MAX_SERIES {
            shelf.sweep(now);
        }
        if shelf.groups.len() >= MAX_SERIES && !shelf.groups.contains_key(&labels) {
            return self.overflow[labels.direction as usize].clone();
        }
        let labels = Arc::new(labels);
        let new = || Arc::new(Group::new(labels.clone(), self.total.clone(), now));
        shelf.groups.entry(labels.clone()).or_insert_with(new).clone()
    }

    fn snapshot(&self) -> Vec<(Arc<TrafficLabels>, Option<Outcome>, Arc<Series>)> {
        let shelf = self.shelf.read().unwrap_or_else(PoisonError::into_inner);
        let groups: Vec<Arc<Group>> = shelf.groups.values().chain(&self.overflow).cloned().collect();
        drop(shelf);
        let series = |group: &Arc<Group>| {
            let all = group.series.read().unwrap_or_else(PoisonError::into_inner);
            all.iter()
                .map(|(outcome, series)| (group.labels.clone(), *outcome, series.clone()))
                .collect::<Vec<_>>()
        };
        groups.iter().flat_map(series).collect()
    }
}

impl Shelf {
    /// Drops groups that no connection holds and that have been idle for long, at most every ten seconds.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.groups.retain(|_, group| Arc::strong_count(group) > 1 || group.idle(now) < MIN_IDLE);
    }
}

impl Group {
    fn new(labels: Arc<TrafficLabels>, total: Arc<AtomicUsize>, now: Instant) -> Self {
        Self { labels, series: RwLock::default(), total, epoch: now, last_used: AtomicU64::new(0) }
    }

    /// Counts one request.
    pub(super) fn count(&self, outcome: Outcome, measured: &Measured, now: Instant) {
        self.touch(now);
        self.series(outcome).count(measured);
    }

    fn series(&self, outcome: Outcome) -> Arc<Series> {
        let find = |all: &[(Option<Outcome>, Arc<Series>)], wanted| {
            all.iter().find(|(outcome, _)| *outcome == wanted).map(|(_, series)| series.clone())
        };
        let found = find(&self.series.read().unwrap_or_else(PoisonError::into_inner), Some(outcome));
        if let Some(series) = found {
            return series;
        }
        let mut all = self.series.write().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= MAX_OF_GROUP || self.total.load(Ordering::Relaxed) >= MAX_SERIES;
        let wanted = (!full).then_some(outcome);
        if let Some(series) = find(&all, wanted).or_else(|| find(&all, Some(outcome))) {
            return series;
        }
        let series = Arc::new(Series::default());
        all.push((wanted, series.clone()));
        self.total.fetch_add(1, Ordering::Relaxed);
        series
    }

    fn touch(&self, now: Instant) {
        let age = u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX);
        self.last_used.fetch_max(age, Ordering::Relaxed);
    }

    fn idle(&self, now: Instant) -> Duration {
        let last_used = Duration::from_millis(self.last_used.load(Ordering::Relaxed));
        now.saturating_duration_since(self.epoch).saturating_sub(last_used)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let series = self.series.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.total.fetch_sub(series.len(), Ordering::Relaxed);
    }
}

impl Series {
    fn count(&self, measured: &Measured) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(measured.duration.as_micros()).unwrap_or(u64::MAX);
        self.milliseconds.observe(measured.duration.as_secs_f64() * 1_000.0, micros);
        self.request_bytes.observe_whole(measured.request_bytes);
        self.response_bytes.observe_whole(measured.response_bytes);
        self.request_messages.fetch_add(measured.request_messages, Ordering::Relaxed);
        self.response_messages.fetch_add(measured.response_messages, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    sum: AtomicU64,
}

impl Histogram {
    fn observe(&self, value: f64, to_sum: u64) {
        let at = BOUNDS.partition_point(|bound| *bound < value).min(BOUNDS.len() - 1);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(to_sum, Ordering::Relaxed);
    }

    fn observe_whole(&self, value: u64) {
        #[expect(clippy::cast_precision_loss, reason = "only its bucket is looked up by it")]
        self.observe(value as f64, value);
    }

    fn read(&self) -> ([(f64, u64); BOUNDS.len()], u64, u64) {
        let buckets = std::array::from_fn(|at| (BOUNDS[at], self.buckets[at].load(Ordering::Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        (buckets, count, self.sum.load(Ordering::Relaxed))
    }
}

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Count = fn(&Series) -> &AtomicU64;
        type Histo = fn(&Series) -> &Histogram;
        const HISTOGRAMS: [(&str, &str, Histo, f64); 3] = [
            (
                "istio_request_duration_milliseconds",
                "How long requests took, from their head to the end of the answer.",
                |series| &series.milliseconds,
                1_000.0,
            ),
            ("istio_request_bytes", "Bytes of the requests' bodies.", |series| &series.request_bytes, 1.0),
            ("istio_response_bytes", "Bytes of the answers' bodies.", |series| &series.response_bytes, 1.0),
        ];
        const MESSAGES: [(&str, &str, Count); 2] = [
            ("istio_request_messages", "gRPC messages of clients.", |series| &series.request_messages),
            ("istio_response_messages", "gRPC messages of servers.", |series| &series.response_messages),
        ];
        let all = self.snapshot();
        if all.is_empty() {
            return Ok(());
        }
        let mut counter = |name, help, field: Count, only_grpc: bool| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, outcome, series) in &all {
                if !only_grpc || outcome.is_some_and(|outcome| outcome.grpc) {
                    let value = field(series).load(Ordering::Relaxed);
                    let labels = RequestLabels { labels, outcome: *outcome };
                    ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
                }
            }
            Ok::<_, fmt::Error>(())
        };
        counter("istio_requests", "Requests, at their end.", |series| &series.requests, false)?;
        for (name, help, field) in MESSAGES {
            counter(name, help, field, true)?;
        }
        for (name, help, field, scale) in HISTOGRAMS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, outcome, series) in &all {
                let (buckets, count, sum) = field(series).read();
                let labels = RequestLabels { labels, outcome: *outcome };
                #[expect(clippy::cast_precision_loss, reason = "a sum is a float in this format")]
                let sum = sum as f64 / scale;
                metric.encode_family(&labels)?.encode_histogram::<NoLabels>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

/// Of exemplars, of which there are none.
type NoLabels = [(&'static str, &'static str); 0];

struct RequestLabels<'a> {
    labels: &'a TrafficLabels,
    outcome: Option<Outcome>,
}

impl EncodeLabelSet for RequestLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let grpc = self.outcome.is_some_and(|outcome| outcome.grpc);
        let protocol = if grpc { "grpc" } else { "http" };
        let flag = self.outcome.map_or(UNKNOWN, |outcome| outcome.flag.label());
        self.labels.encode(encoder, protocol, flag)?;
        let mut put = |key: &str, value: &str| (key, value).encode(encoder.encode_label());
        match self.outcome {
            None => put("response_code", UNKNOWN)?,
            Some(outcome) => put("response_code", &outcome.status.to_string())?,
        }
        // Istio has it on all, and empty where there is none.
        let status = self.outcome.and_then(|outcome| outcome.grpc_status);
        put("grpc_response_status", &status.map(|status| status.to_string()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::web_to_cart;

    const OK: Outcome = Outcome { grpc: false, status: 200, grpc_status: None, flag: ResponseFlag::None };

    fn labels() -> TrafficLabels {
        TrafficLabels::of(&web_to_cart(Direction::Inbound))
    }

    #[test]
    fn an_application_that_plays_with_status_codes_fills_its_own_group_only() {
        let (requests, now) = (Requests::new(), Instant::now());
        let group = requests.group(labels(), now);
        for status in 100..1_000 {
            group.count(Outcome { status, ..OK }, &Measured::default(), now);
        }
        let all = requests.snapshot();
        assert_eq!(all.len(), MAX_OF_GROUP + 1, "one for the rest");
        let counted: u64 = all.iter().map(|(_, _, series)| series.requests.load(Ordering::Relaxed)).sum();
        assert_eq!(counted, 900);
        drop(group);
        let later = now + MIN_IDLE;
        requests.shelf.write().unwrap().sweep(later);
        assert_eq!((requests.snapshot().len(), requests.total.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn values_fall_into_the_buckets_of_envoy() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 5, 6, u64::MAX / 2] {
            histogram.observe_whole(value);
        }
        let (buckets, count, _) = histogram.read();
        let filled: Vec<_> = buckets.into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.5, 1), (1.0, 1), (5.0, 2), (10.0, 1), (f64::MAX, 1)]);
        assert_eq!(count, 6);
    }
}
