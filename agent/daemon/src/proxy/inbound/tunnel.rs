//! The streams of one tunnel to a pod, one after another, until either end has had enough of it.

use std::time::Duration;

use ambit_core::reason::Refusal;
use tokio::{net::TcpStream, select};

use super::{Call, Called};
use crate::{
    capture::Dial,
    proxy::{Cut, admission::Place, describe, distrusted},
    telemetry::{Connection, Ending},
    tunnel::{Incoming, Leg as _, Session, Stream, TunnelError, tls::PeerIdentity},
};

/// How long a tunnel may rest. Longer than clients keep theirs, so that none is closed under their hands.
const TUNNEL_IDLE: Duration = Duration::from_secs(90);
/// How soon the next stream follows the one before where there are many. No longer than the agent sleeps at most, so that it wakes no
/// thread.
const SOON: Duration = Duration::from_millis(50);
/// How long a client may take to begin a stream that has crossed our word that there be no other.
const LAST_OPEN: Duration = Duration::from_secs(1);

/// What comes next on a tunnel.
enum Next {
    Stream(Box<Incoming>),
    /// The agent is about to end: another stream is to come on another tunnel.
    Drain,
    Over,
    /// The peer is not believed any more.
    Distrusted(Refusal),
    Failed(TunnelError),
}

impl Next {
    fn of(next: Result<Option<Incoming>, TunnelError>) -> Self {
        match next {
            Ok(Some(incoming)) => Self::Stream(Box::new(incoming)),
            Ok(None) => Self::Over,
            Err(error) => Self::Failed(error),
        }
    }
}

impl<D: Dial> Call<'_, D> {
    /// All streams of one tunnel.
    pub(super) async fn tunnel(&self, mut session: Session, place: &Place) {
        let _open = self.shared.telemetry.tunnel();
        let mut reused = false;
        let mut patience = TUNNEL_IDLE;
        let tell = loop {
            let peer = session.facts().peer.clone();
            // What the client begins after this has it on our present certificate.
            let outdated = self.shared.wallet.renewed_since(&self.workload.identity, session.since());
            if outdated && patience == TUNNEL_IDLE {
                patience = LAST_OPEN;
                if Box::pin(session.go_away()).await.is_err() {
                    break None;
                }
            }
            // On the heap, one after the other: what each of them holds is big, and a tunnel lives long.
            let next = Box::pin(self.next_stream(&mut session, &peer, patience)).await;
            match next {
                Next::Stream(incoming) => match Box::pin(self.stream(session, incoming, reused, place)).await
                {
                    Some(back) => session = back,
                    None => return,
                },
                Next::Drain => {
                    patience = LAST_OPEN;
                    match Box::pin(session.go_away()).await {
                        Ok(()) => continue,
                        Err(_) => break None,
                    }
                }
                Next::Over => break None,
                Next::Distrusted(refusal) => break Some(refusal),
                Next::Failed(error) => {
                    let refusal = Refusal::from(error);
                    let meta = describe::inbound(self.called, Some((session.facts(), reused)), None);
                    self.shared.telemetry.refuse(&meta, &refusal);
                    break Some(refusal);
                }
            }
            reused = true;
        };
        Box::pin(session.close(tell)).await;
    }

    /// Waits for what comes next on a tunnel. Often that is another stream soon: what else may come is followed only if not.
    async fn next_stream(&self, session: &mut Session, peer: &PeerIdentity, patience: Duration) -> Next {
        let drains = patience == TUNNEL_IDLE && self.shared.is_draining();
        if !drains && let Some(next) = session.next_within(SOON).await {
            let distrusted_now = self.shared.wallet.recheck(&self.workload.identity, peer).err();
            return match distrusted_now {
                _ if self.pod.pod.is_released() => Next::Over,
                Some(refused) => Next::Distrusted(distrusted(refused)),
                None => Next::of(next),
            };
        }
        select! {
            biased;
            () = self.pod.pod.until_released() => Next::Over,
            refused = self.until_distrusted(peer) => Next::Distrusted(distrusted(refused)),
            next = session.next(patience) => Next::of(next),
            () = self.shared.until_draining(), if patience == TUNNEL_IDLE => Next::Drain,
        }
    }

    /// The same by what is known at present: a tunnel outlasts labels, annotations, and that nobody had heard of its client.
    fn called_by(&self, peer: &PeerIdentity) -> Called {
        let Called { source, destination, workload, caller } = self.called;
        let mut known = Called::known(&self.shared.feed.world(), *source, *destination, self.pod.pod.uid());
        known.workload = known.workload.or_else(|| workload.clone());
        // Another pod may have the address by now.
        known.caller = known.caller.filter(|caller| caller.identity == peer.id).or_else(|| caller.clone());
        known
    }

    /// One stream of a tunnel. The session is back if another may follow.
    async fn stream(
        &self,
        session: Session,
        incoming: Box<Incoming>,
        reused: bool,
        place: &Place,
    ) -> Option<Session> {
        let peer = session.facts().peer.clone();
        if let Some(strand) = incoming.strand
            && strand.number == 0
        {
            Box::pin(self.bundle(session, strand, &peer)).await;
            return None;
        }
        let called = self.called_by(&peer);
        let workload = called.workload.as_ref().unwrap_or(self.workload);
        let call = Call { called: &called, workload, ..*self };
        let (app, connection, stream) = Box::pin(call.begin_stream(session, incoming, reused, place)).await?;
        let (ended, stream) = call.carried(Some(&peer), &connection).carry(app, stream).await;
        match ended {
            Ok(()) => {
                connection.finish(&Ending::Closed);
                Some(stream.into_session())
            }
            Err(cut) => {
                let tell = cut.report(connection);
                Box::pin(stream.close(tell)).await;
                None
            }
        }
    }

    /// The application, connected, and the stream to it.
    async fn begin_stream(
        &self,
        session: Session,
        incoming: Box<Incoming>,
        reused: bool,
        place: &Place,
    ) -> Option<(TcpStream, Connection, Stream)> {
        let meta = describe::inbound(self.called, Some((session.facts(), reused)), Some(&incoming));
        let peer = session.facts().peer.clone();
        let admitted = Box::pin(self.admit(&peer, &incoming, session.has_spoken()));
        let app = match place.begin_stream(admitted).await {
            Ok(app) => app,
            Err(refusal) => {
                self.refuse_as(&refusal, &meta, Some(&peer));
                session.refuse_stream(refusal).await;
                return None;
            }
        };
        let connection = self.shared.telemetry.open(meta);
        let strand =
            incoming.strand.and_then(|strand| self.shared.bundles.enter(&self.served(&peer), strand));
        let mut stream = session.accept_stream(strand);
        if incoming.waits
            && let Err(error) = stream.answer()
        {
            stream.close(Cut::by_leg(error).report(connection)).await;
            return None;
        }
        Some((app, connection, stream))
    }
}
