//! Distributed traces: a span for each request of a trace that is sampled, and its place in that trace passed on.
//!
//! Never in the way: spans wait in a queue of bounded size, and those that find no room or no collector are counted and lost.
//! Without a collector nothing is read into headers and nothing is changed in them.

mod context;
mod export;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Uri};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::mpsc::{self, error::TrySendError};

pub(super) use context::Context;

/// Spans that wait to be sent; one takes about 1 KB.
const QUEUE: usize = 2_048;

/// Where spans go, and of which traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceSettings {
    /// The OTLP endpoint for gRPC: `http` or `https`, host, and port.
    pub(crate) endpoint: Uri,
    /// Of 10,000 traces that begin here, so many are sampled. A trace that comes with a decision keeps it.
    pub(crate) sampled: u32,
    /// The node, which every span names.
    pub(crate) node: String,
}

/// Takes spans. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Traces {
    sampled: u32,
    queue: mpsc::Sender<Span>,
    counts: SpanCounts,
}

/// What has become of spans.
#[derive(Clone, Debug)]
pub(super) struct SpanCounts {
    exported: Counter,
    /// There was no room in the queue.
    dropped: Counter,
    /// The collector did not take them.
    failed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    result: &'static str,
}

/// A request's place in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    trace_id: u128,
    span_id: u64,
    parent: Option<u64>,
    state: String,
}

/// What is told of a request.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) place: Place,
    /// Whom it is told of: `name.namespace` of the called workload.
    pub(super) service: Arc<str>,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
    pub(super) method: String,
    pub(super) path: Box<str>,
    pub(super) authority: Box<str>,
    pub(super) protocol: &'static str,
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<i64>,
    pub(super) client: SocketAddr,
    pub(super) source: Option<String>,
    pub(super) request_id: Option<Box<str>>,
    /// The code of a refusal, and the policy behind it.
    pub(super) refused: Option<(&'static str, Option<Arc<str>>)>,
    pub(super) flag: &'static str,
}

impl SpanCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let spans = Family::<SpanLabels, Counter>::default();
        let [exported, dropped, failed] =
            ["exported", "dropped", "failed"].map(|result| spans.get_or_create_owned(&SpanLabels { result }));
        let help = "Spans of sampled requests: exported, dropped for want of room in the queue, or not taken by the collector (failed)";
        registry.register("ambit_trace_spans", help, spans);
        Self { exported, dropped, failed }
    }
}

impl Place {
    /// The trace, in 32 digits.
    pub(super) fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl Traces {
    /// Begins to send spans; what sends them goes on in the current runtime until the last handle is dropped.
    pub(super) fn start(settings: TraceSettings, counts: SpanCounts) -> Self {
        let (queue, spans) = mpsc::channel(QUEUE);
        let sampled = settings.sampled;
        tokio::spawn(export::run(settings, spans, counts.clone()));
        Self { sampled, queue, counts }
    }

    /// The place of a request that is sampled: as its client's trace says, else by chance. Whoever comes next in the trace learns of
    /// it from the headers.
    pub(super) fn begin(&self, came: Option<&Context>, headers: &mut HeaderMap) -> Option<Place> {
        let place = place(came, self.sampled, rand::random())?;
        context::write(&place, headers);
        Some(place)
    }

    pub(super) fn send(&self, span: Span) {
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = self.queue.try_send(span) {
            self.counts.dropped.inc();
        }
    }
}

/// `chance` decides where no trace has come, and gives the numbers that are new.
fn place(came: Option<&Context>, sampled: u32, chance: [u64; 4]) -> Option<Place> {
    let [lot, high, low, span] = chance;
    let wanted = came.and_then(|came| came.sampled).unwrap_or(lot % 10_000 < u64::from(sampled));
    let span_id = span.max(1);
    wanted.then(|| match came.and_then(|came| came.ids) {
        Some((trace_id, parent)) => Place {
            trace_id,
            span_id,
            parent: Some(parent),
            state: came.map(|came| came.state.clone()).unwrap_or_default(),
        },
        None => {
            let trace_id = (u128::from(high) << 64) | u128::from(low.max(1));
            Place { trace_id, span_id, parent: None, state: String::new() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANCE: [u64; 4] = [5_000, 1, 2, 3];

    #[test]
    fn a_trace_that_comes_with_a_decision_keeps_it() {
        let came = |sampled| Context { ids: Some((7, 8)), sampled, state: "a=b".to_owned() };
        let of = |came: Option<&Context>, share| place(came, share, CHANCE);
        let inside = Some(Place { trace_id: 7, span_id: 3, parent: Some(8), state: "a=b".to_owned() });
        assert_eq!(of(Some(&came(Some(true))), 0), inside);
        assert_eq!(of(Some(&came(Some(false))), 10_000), None);
        assert_eq!(of(Some(&came(None)), 10_000), inside);
        let root = Place { trace_id: (1 << 64) | 2, span_id: 3, parent: None, state: String::new() };
        assert_eq!(of(None, 5_001), Some(root));
        assert_eq!(of(None, 5_000), None);
    }
}
