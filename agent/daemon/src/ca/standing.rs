//! How long a client's connection may go on: a moment until somebody who is known asks by it, then for as long as that happens
//! now and again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::clients::Place;

/// The standing of one connection.
#[derive(Debug)]
pub(super) struct Standing {
    place: Place,
    until: Mutex<Instant>,
    idle: Duration,
}

impl Standing {
    /// A client that has proved nothing yet; it has `proof` for it, and `idle` from one request to the next.
    pub(super) fn new(place: Place, proof: Duration, idle: Duration) -> Self {
        Self { place, until: Mutex::new(Instant::now() + proof), idle }
    }

    /// Somebody who is known has asked.
    pub(super) fn prove(&self) {
        self.place.prove();
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + self.idle;
    }

    /// Returns when the connection's time is over, or its place another's.
    pub(super) async fn over(self: Arc<Self>) {
        let ended = async {
            loop {
                let until = self.until();
                if until <= Instant::now() {
                    return;
                }
                sleep_until(until).await;
            }
        };
        tokio::select! {
            () = ended => {}
            () = self.place.lost() => {}
        }
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
