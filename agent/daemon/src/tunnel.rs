//! Sessions between agents: TLS, the dialects behind [`Session`] and [`Stream`], buffers, and the pool of sessions that wait.
//! Is told address and expected identity; knows neither discovery nor policy.

mod ambit1;
mod buffer;
mod bundle;
mod credentials;
mod detect;
mod joined;
mod kernel;
mod origination;
mod plain;
mod pool;
mod secret;
pub(crate) mod session;
mod socket;
mod splice;
pub(crate) mod tls;
mod turns;

use std::io;

use ambit_core::{
    frame::{FrameError, parcel::ParcelError},
    reason::{Reason, Refusal},
};

pub(crate) use self::{
    buffer::{Budget, Buffer, Hold, Share, Waiting, call_in_spares, give_back_spares},
    bundle::{Bundle, Bundles, Bundling, Served, Strand, StrandId, carry as carry_bundle},
    credentials::Wallet,
    detect::{First, first_bytes, judge, server_name},
    joined::{Count, Joined},
    kernel::{Ability, Offload, probe},
    origination::Originated,
    plain::Plain,
    pool::{Pool, PoolKey},
    session::{ANSWERED_WITHIN, Incoming, Leg, LegError, Moved, Order, PeerFacts, Session, Stream},
    socket::{poll_read, poll_write, shut},
    tls::{Outside, OutsideTls},
};

/// Why a tunnel could not be made or ended before its streams did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// The handshake failed, on either side.
    #[error("{text}")]
    Handshake {
        /// Whose fault, as a code.
        reason: Reason,
        /// For an operator.
        text: String,
    },
    /// The peer took longer than it may.
    #[error("the peer did not {0} in time")]
    Timeout(&'static str),
    /// The network failed.
    #[error("the connection between the agents failed: {0}")]
    Io(#[from] io::Error),
    /// The peer closed the connection in the middle of a stream.
    #[error("the peer agent closed the connection in the middle of a stream")]
    Closed,
    /// A record could not be opened: tampered with, or not TLS.
    #[error("the peer sent a TLS record that is not authentic or not well-formed")]
    Record,
    /// The peer ended TLS with an alert.
    #[error("the peer ended TLS with alert {0}")]
    Alert(u8),
    /// The peer's frames make no sense.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// What the peer sends on a bundle makes no sense.
    #[error(transparent)]
    Parcel(#[from] ParcelError),
    /// The peer's frame is well-formed, but not where it may be.
    #[error("the peer sent a {0} frame where none may be")]
    Unexpected(&'static str),
    /// The kernel, which has the records, does not take new keys.
    #[error("the kernel cannot go on with the connection under new keys: {0}")]
    Keys(io::Error),
    /// rustls refused something after the handshake.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl TunnelError {
    /// The reason for logs, metrics and the peer.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Handshake { reason, .. } => *reason,
            Self::Timeout(_) => Reason::Timeout,
            Self::Io(_) | Self::Closed | Self::Keys(_) => Reason::Reset,
            Self::Record
            | Self::Alert(_)
            | Self::Frame(_)
            | Self::Parcel(_)
            | Self::Unexpected(_)
            | Self::Tls(_) => Reason::ProtocolError,
        }
    }
}

impl From<TunnelError> for Refusal {
    fn from(error: TunnelError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests;
