//! DNS over TCP of pods that opt in: the same ways as any connection's, but for messages that the agent answers itself.

use std::{net::SocketAddr, sync::Arc};

use ambit_core::{discovery::Endpoint, model::Workload};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    select,
};

use super::{
    Cut, Placed,
    attempts::Carried,
    describe, distrusted,
    outbound::{CONNECT, Call, Way, is_itself},
    sessions::Opened,
    unboxed, unconnected, within,
};
use crate::{
    capture::{Dial, bound_buffers, end_cleanly},
    dns::{Transport, splice},
    telemetry::{Connection, Ending},
    tunnel::Order,
};

/// Where DNS is asked for.
const PORT: u16 = 53;

impl<D: Dial> Call<'_, D> {
    /// Whether it is such a connection, on a way on which messages can be told apart.
    pub(super) fn asks_for_names(&self) -> bool {
        let can = match &self.routed.way {
            Way::Tunnel(client, endpoint, _) => {
                endpoint.rule.is_none() && !is_itself(client, &endpoint.workload)
            }
            Way::Plain(endpoint) => endpoint.rule.is_none(),
            Way::Passthrough | Way::Observed => true,
            Way::Resolve(_) | Way::ByName(_) | Way::Refused(_) => false,
        };
        can && self.routed.original_dst.0.port() == PORT && self.pod.pod.captures_dns()
    }

    pub(super) async fn names(&self, placed: Box<Placed>) -> Carried {
        match &self.routed.way {
            Way::Tunnel(client, endpoint, order) => {
                Box::pin(self.names_by_tunnel(placed, client, endpoint, *order)).await
            }
            Way::Plain(endpoint) => self.names_from(placed, endpoint.addr.0).await,
            _ => self.names_from(placed, self.routed.original_dst.0).await,
        }
    }

    async fn names_by_tunnel(
        &self,
        placed: Box<Placed>,
        client: &Arc<Workload>,
        endpoint: &Endpoint,
        order: Order,
    ) -> Carried {
        let opened = Box::pin(self.opened(unboxed(placed), client, endpoint, order)).await?;
        let Some(Opened { app, place: _place, mut stream, peer, connection }) = opened else { return Ok(()) };
        let ended = select! {
            ended = self.exchanged(app, &mut stream, &connection) => ended,
            refused = self.shared.wallet.until_distrusted(&client.identity, &peer) => {
                let tell = Cut::here(distrusted(refused)).report(connection);
                tokio::spawn(stream.close(tell));
                return Ok(());
            }
        };
        connection.finish(&ended);
        match ended {
            Ending::Closed => {
                self.pod.pod.answered(self.routed.original_dst.0);
                tokio::spawn(stream.into_session().close(None));
            }
            _ => {
                self.pod.pod.unanswered(self.routed.original_dst.0);
                tokio::spawn(stream.close(None));
            }
        }
        Ok(())
    }

    async fn names_from(&self, placed: Box<Placed>, resolver: SocketAddr) -> Carried {
        let dial = async {
            let dial = self.pod.pod.dial_plain(self.routed.source.ip(), resolver);
            within(CONNECT, dial).await.map_err(|error| unconnected("the resolver", resolver, &error))
        };
        let Some((app, place, mut server)) = self.reached(unboxed(placed), dial).await? else {
            return Ok(());
        };
        bound_buffers(&server, place.buffers());
        let connection = self.shared.telemetry.open(describe::outbound(self.routed, None));
        let ended = self.exchanged(app, &mut server, &connection).await;
        if matches!(ended, Ending::Closed) {
            end_cleanly(&server);
        }
        connection.finish(&ended);
        Ok(())
    }

    /// Carries messages until both ends have ended, or one was cut.
    async fn exchanged(
        &self,
        mut app: TcpStream,
        server: impl AsyncRead + AsyncWrite + Unpin,
        connection: &Connection,
    ) -> Ending {
        let answer = |query: &[u8]| self.shared.dns.answer(self.pod.pod.uid(), query, Transport::Tcp);
        let moved = |sent: usize, got: usize| {
            connection.client_to_server(sent as u64);
            connection.server_to_client(got as u64);
        };
        match splice(&mut app, server, answer, moved).await {
            Ok(()) => {
                end_cleanly(&app);
                Ending::Closed
            }
            Err(_) => Ending::Reset,
        }
    }
}
