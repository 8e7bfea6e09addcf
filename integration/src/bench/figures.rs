//! What is measured, in which unit, and which way is the better one.

use serde::{Deserialize, Serialize};

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The greater.
    More,
    /// The smaller.
    Less,
}

/// A figure of a load.
#[derive(Debug)]
pub(super) struct Figure {
    /// In JSON.
    pub(super) key: &'static str,
    /// For people.
    pub(super) label: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
}

pub(super) static GBPS: Figure = more("gbps", "throughput", "Gbit/s");
pub(super) static REQUESTS: Figure = more("requests_per_second", "requests", "/s");
pub(super) static CONNECTIONS: Figure = more("connections_per_second", "new connections", "/s");
pub(super) static P50: Figure = less("p50_us", "p50", "µs");
pub(super) static P99: Figure = less("p99_us", "p99", "µs");
pub(super) static P999: Figure = less("p999_us", "p99.9", "µs");
pub(super) static CPU_PER_GIGABYTE: Figure = less("cpu_s_per_gigabyte", "processor time", "s/GB");
pub(super) static CPU_PER_REQUESTS: Figure =
    less("cpu_s_per_100k_requests", "processor time", "s/100k requests");
pub(super) static CPU_PER_CONNECTIONS: Figure =
    less("cpu_s_per_10k_connections", "processor time", "s/10k connections");
pub(super) static COLD: Figure = less("cold_us", "first connection, first byte", "µs");
pub(super) static WARM: Figure = less("warm_us", "later connections, first byte", "µs");
pub(super) static AT_REST: Figure = less("one_pod_kib", "one pod, at rest", "KiB");
pub(super) static PER_IDLE: Figure =
    less("per_idle_connection_bytes", "each idle connection, both ends", "B");
pub(super) static PER_BUSY: Figure =
    less("per_busy_connection_bytes", "each busy connection, both ends", "B");
pub(super) static PER_STALLED: Figure =
    less("per_stalled_connection_bytes", "each connection stalled both ways, both ends", "B");
pub(super) static GIVEN_BACK: Figure =
    more("given_back_percent", "given back 10 s after idle ones closed", "%");
pub(super) static ENROL_1: Figure = less("enrol_1_ms", "one pod", "ms");
pub(super) static ENROL_100: Figure = less("enrol_100_ms", "100 pods", "ms");
pub(super) static ENROL_250: Figure = less("enrol_250_ms", "250 pods", "ms");
pub(super) static CNI_ADD: Figure = less("cni_add_ms", "a new pod, by its CNI ADD", "ms");
pub(super) static PODS_250: Figure = less("pods_250_kib", "memory with 250 pods", "KiB");

const fn more(key: &'static str, label: &'static str, unit: &'static str) -> Figure {
    Figure { key, label, unit, better: Better::More }
}

const fn less(key: &'static str, label: &'static str, unit: &'static str) -> Figure {
    Figure { key, label, unit, better: Better::Less }
}
