//! Whose connections are captured on this node: what should be, and the map that the programs look into.
//!
//! Promises that nothing which should be captured goes out in plaintext because the map has no room for it: while the two
//! differ, all that enrolled pods dial is captured, and the agent knows where it may go.

use std::collections::HashSet;

use ambit_core::discovery::{Delta, Destination};
use ambit_ebpf_common::{ANY_NODE, DestinationKey, EVERY_PORT, NODE, addr};

use super::{CaptureError, maps::Maps};

#[derive(Debug, Default)]
pub(super) struct Destinations {
    wanted: HashSet<Destination>,
    /// Why the map does not hold what is wanted, if it does not.
    shortfall: Option<String>,
}

impl Destinations {
    /// These are to be captured from the next [`Self::put`] on, whatever was before.
    pub(super) fn replace(&mut self, wanted: HashSet<Destination>) {
        self.wanted = wanted;
    }

    /// Makes the map hold what is wanted. Fails only if not even everything can be captured instead.
    pub(super) fn put(&mut self, maps: &Maps) -> Result<(), CaptureError> {
        let room = maps.room_for_destinations();
        let done = if self.wanted.len() > room {
            maps.forget_destinations();
            Err(format!(
                "{} destinations are to be captured, and there is room for {room}",
                self.wanted.len()
            ))
        } else {
            let entries = self.wanted.iter().map(|destination| (key(*destination), 1)).collect();
            maps.set_destinations(entries).map_err(|error| error.to_string())
        };
        maps.capture_everything(done.is_err())?;
        self.shortfall = done.err();
        Ok(())
    }

    /// Begins and ends the capture of what differs. After a failure the next call, be it that nothing differs, puts the whole
    /// list in order.
    pub(super) fn follow(&mut self, delta: &Delta, maps: Option<&Maps>) -> Result<(), CaptureError> {
        self.wanted.extend(delta.begun());
        for destination in delta.ended() {
            self.wanted.remove(&destination);
        }
        let Some(maps) = maps else { return Ok(()) };
        let fits = maps.holds_destinations() && self.wanted.len() <= maps.room_for_destinations();
        if fits && maps.change_destinations(delta.begun().map(key), delta.ended().map(key)).is_ok() {
            return Ok(());
        }
        self.put(maps)
    }

    /// Why everything is captured, if it is.
    pub(super) fn shortfall(&self) -> Option<&str> {
        self.shortfall.as_deref()
    }
}

fn key(destination: Destination) -> DestinationKey {
    let (addr, port) = match destination {
        Destination::Address(ip) => (addr(ip), EVERY_PORT),
        Destination::Port(at) => (addr(at.ip()), at.port().into()),
        Destination::Node(ip) => (addr(ip), NODE),
        Destination::NodePort(port) => (ANY_NODE, port.into()),
    };
    DestinationKey { addr, port }
}
