//! The servers' ports that loads use.

use super::proxies::Speaks;
pub(super) use crate::load::ports::{ECHO, HTTP, IPERF};

/// Answers gRPC calls.
pub(super) const GRPC: u16 = 8082;
/// Writes and never reads.
pub(super) const MUTE: u16 = 9004;

/// All of them.
pub(super) const ALL: [(u16, Speaks); 5] = [
    (HTTP, Speaks::Http),
    (GRPC, Speaks::Grpc),
    (ECHO, Speaks::Bytes),
    (MUTE, Speaks::Bytes),
    (IPERF, Speaks::Bytes),
];
