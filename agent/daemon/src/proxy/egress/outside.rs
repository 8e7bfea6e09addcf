//! Connections to what nothing is known of but an address, and the name in the application's TLS: counted, and where a namespace may
//! reach only what is registered, let through by that name.

use std::{net::SocketAddr, time::Duration};

use ambit_core::{
    discovery::{EntryPort, Named, Resolution, ServiceEntry},
    model::ServiceName,
    reason::Refusal,
};
use tokio::{net::TcpStream, select, time::timeout};

use crate::{
    capture::{Client, Dial, bound_buffers},
    proxy::{
        Cut, Placed,
        admission::Place,
        attempts::Carried,
        describe,
        outbound::{CONNECT, Call, Outbound},
        relay::Relay,
        settled::Settled,
        unconnected,
        waiting::admit,
        within,
    },
    telemetry::Ending,
    tunnel::{Plain, server_name},
};

/// How long a name is waited for that is only to be told of; no longer than until the server speaks.
const GLIMPSE: Duration = Duration::from_millis(20);
/// How long one is waited for that decides.
const HELLO: Duration = Duration::from_secs(2);
/// The longest ClientHello that is looked at.
const LONGEST: usize = 4_096;

impl<D: Dial> Call<'_, D> {
    /// To where it was dialled, told of under the name that the application's TLS has.
    pub(in crate::proxy) async fn observed(&self, placed: Placed) -> Carried {
        let dial = self.outside_dial(self.routed.original_dst.0);
        let Some((app, place, server)) = self.reached(placed, dial).await? else { return Ok(()) };
        let name = select! {
            name = timeout(GLIMPSE, name_of(&app)) => name.ok().flatten(),
            _ = server.readable() => None,
        };
        self.relayed(app, server, name.as_deref(), &place).await;
        Ok(())
    }

    /// To the ServiceEntry of the name in the application's TLS. It is connected before that is known.
    pub(in crate::proxy) async fn by_name(&self, app: Client, refusal: &Refusal, mut place: Place) {
        let app = match admit(app).await {
            Ok(app) => app,
            Err(refusal) => return self.refused(&refusal),
        };
        bound_buffers(&app, place.buffers());
        let name = timeout(HELLO, name_of(&app)).await.ok().flatten();
        let dialled = async {
            let to =
                self.named(name.as_deref()).await.map_err(|why| why.unwrap_or_else(|| refusal.clone()))?;
            self.outside_dial(to).await
        };
        match place.begin(Box::pin(dialled)).await {
            Ok(server) => self.relayed(app, server, name.as_deref(), &place).await,
            Err(refusal) => {
                let text = match &name {
                    Some(name) => format!("{} (the name in its TLS is {name})", refusal.text),
                    None => refusal.text.to_string(),
                };
                self.refused(&Refusal { text: text.into(), ..refusal });
            }
        }
    }

    /// Where a name leads, by its entry; no reason if there is no such entry.
    async fn named(&self, name: Option<&str>) -> Result<SocketAddr, Option<Refusal>> {
        let (dst, world) = (self.routed.original_dst.0, self.shared.feed.world());
        let client = self.routed.client.as_ref().ok_or(None::<Refusal>)?;
        let name = name.ok_or(None::<Refusal>)?;
        let (entry, port) =
            world.mesh.entry_named(&client.name.namespace, name, dst.port()).ok_or(None::<Refusal>)?;
        // Whoever names a host does not choose where that is, but for entries that say so.
        if entry.resolution == Resolution::None {
            return Ok(dst);
        }
        let named = Named {
            names: vec![(name.into(), port_of(entry, port))],
            first_only: entry.resolution == Resolution::DnsRoundRobin,
            service: ServiceName { name: entry.name.clone(), host: name.into() },
            rule: None,
        };
        let found = self.shared.egress.names.resolve(&named, self.routed.source.ip(), rand::random(), &[]);
        found.await.map_err(Some)
    }

    async fn outside_dial(&self, to: SocketAddr) -> Result<TcpStream, Refusal> {
        let dial = self.pod.pod.dial_plain(self.routed.source.ip(), to);
        within(CONNECT, dial).await.map_err(|error| unconnected("the destination", to, &error))
    }

    async fn relayed(&self, app: TcpStream, server: TcpStream, name: Option<&str>, place: &Place) {
        bound_buffers(&server, place.buffers());
        let meta = describe::outbound(self.routed, None);
        self.shared.telemetry.outside(&meta, name);
        let connection = self.shared.telemetry.open(meta);
        let mut relay = Relay::new(app, Plain::new(server, self.pod.share.clone()));
        let meter = Outbound(&connection);
        let ending = match self.shared.relay(&*self.pod.pod, &mut relay, &meter, &Settled::default()).await {
            Ok(()) => Ending::Closed,
            Err(broken) => Cut::by_relay(broken).ending(),
        };
        connection.finish(&ending);
    }
}

/// The port of endpoints, where they say no other.
fn port_of(entry: &ServiceEntry, port: &EntryPort) -> u16 {
    entry.endpoints.first().map_or(port.target, |endpoint| endpoint.port(port))
}

/// The name in the ClientHello that the application begins with, if it does.
async fn name_of(app: &TcpStream) -> Option<Box<str>> {
    let mut bytes = vec![0; LONGEST];
    loop {
        let len = app.peek(&mut bytes).await.ok().filter(|len| *len > 0)?;
        match server_name(&bytes[..len]) {
            Some(name) => return name,
            None if len == bytes.len() => return None,
            // More of it is on the way; a peek returns at once while there is anything.
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}
