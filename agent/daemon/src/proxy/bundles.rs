//! The connections of bundles: made by the client's agent once many streams to one pod speak at a time, and served by the other one as long as
//! either wants it.

use std::{future::poll_fn, net::IpAddr, sync::Arc, time::Duration};

use ambit_core::{discovery::Endpoint, model::Workload, reason::Reason};
use tokio::{
    io::AsyncWriteExt as _,
    select,
    time::{sleep, timeout},
};

use super::{Pod, Shared, distrusted, inbound, outbound, sessions::new_session};
use crate::{
    capture::Dial,
    tunnel::{
        ANSWERED_WITHIN, Bundle, Incoming, LegError, Order, Served, Session, StrandId, Stream, carry_bundle,
        tls::PeerIdentity,
    },
};

/// How long this end keeps a bundle that nothing passes over, if it has made it.
const CLIENT_IDLE: Duration = Duration::from_secs(10);
/// The same if the other end has made it: longer, so that none is closed under a client's hands.
const SERVER_IDLE: Duration = Duration::from_secs(90);
/// How long after one that could not be made, or has ended, the next is tried.
const PAUSE: Duration = Duration::from_secs(1);

impl<D: Dial> outbound::Call<'_, D> {
    /// Has the connection of `bundle` made when it is wanted, unless somebody does already or there are too few streams.
    pub(super) fn keep_bundle(&self, bundle: &Arc<Bundle>, client: &Arc<Workload>, endpoint: &Endpoint) {
        if !bundle.is_to_be_kept() {
            return;
        }
        let keeper = Keeper {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            source: self.routed.source.ip(),
            client: client.clone(),
            endpoint: endpoint.clone(),
            bundle: bundle.clone(),
        };
        tokio::spawn(keeper.keep());
    }
}

/// Who makes the connection of a bundle.
struct Keeper<D> {
    shared: Arc<Shared>,
    pod: Pod<D>,
    source: IpAddr,
    client: Arc<Workload>,
    endpoint: Endpoint,
    bundle: Arc<Bundle>,
}

impl<D> Drop for Keeper<D> {
    fn drop(&mut self) {
        self.bundle.give_up();
    }
}

impl<D: Dial> Keeper<D> {
    async fn keep(self) {
        while poll_fn(|cx| self.bundle.poll_wanted(cx)).await {
            if self.shared.is_draining() || self.pod.pod.is_released() {
                return;
            }
            if let Err(error) = Box::pin(self.carry()).await {
                tracing::debug!(%error, destination = %self.endpoint.addr.0, "a bundle has ended");
            }
            sleep(PAUSE).await;
        }
    }

    /// From the handshake to the end.
    async fn carry(&self) -> Result<(), LegError> {
        let Self { shared, pod, source, client, endpoint, bundle } = self;
        let session = new_session(shared, pod, *source, client, endpoint, None).await?;
        let peer = session.facts().peer.clone();
        let opening = Incoming {
            original_dst: endpoint.addr.0,
            service: None,
            trace: None,
            order: Order::default(),
            waits: true,
            strand: Some(bundle.name()),
        };
        let mut stream = session.open(opening, None);
        if let Ok(confirmed) = timeout(ANSWERED_WITHIN, stream.confirmed(false)).await {
            confirmed?;
            let distrusted = shared.wallet.until_distrusted(&client.identity, &peer);
            return finish(shared, pod, bundle, stream, distrusted, CLIENT_IDLE).await;
        }
        Ok(())
    }
}

impl<D: Dial> inbound::Call<'_, D> {
    /// Whose a bundle is that this client names.
    pub(super) fn served(&self, peer: &PeerIdentity) -> Served {
        Served { pod: self.workload.uid.clone(), source: self.called.source.0.ip(), peer: peer.id.clone() }
    }

    /// Serves the connection of a bundle to its end.
    pub(super) async fn bundle(&self, session: Session, name: StrandId, peer: &PeerIdentity) {
        let Some(bundle) = self.shared.bundles.serve(&self.served(peer), name) else {
            return session.close(None).await;
        };
        let mut stream = session.accept_stream(None);
        if stream.flush().await.is_err() {
            return;
        }
        let distrusted = self.until_distrusted(peer);
        if let Err(error) = finish(self.shared, self.pod, &bundle, stream, distrusted, SERVER_IDLE).await {
            tracing::debug!(%error, client = %self.called.source.0, "a bundle has ended");
        }
    }
}

/// Carries a bundle until either end has had enough, the agent or the pod leaves, or the peer is not believed any more.
async fn finish<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    bundle: &Bundle,
    mut stream: Stream,
    distrusted_now: impl Future<Output = (Reason, String)>,
    idle: Duration,
) -> Result<(), LegError> {
    let counts = shared.telemetry.bundles();
    let leaves = async {
        select! {
            () = shared.until_draining() => {}
            () = pod.pod.until_released() => {}
        }
        bundle.end();
        std::future::pending::<()>().await;
    };
    let ended = select! {
        biased;
        refused = distrusted_now => Err(LegError::Here(distrusted(refused))),
        () = leaves => Ok(()),
        ended = carry_bundle(bundle, &mut stream, idle, &counts) => ended,
    };
    let tell = if let Err(LegError::Here(refusal)) = &ended { Some(refusal.clone()) } else { None };
    stream.close(tell).await;
    ended
}
