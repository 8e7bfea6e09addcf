//! What a connection takes while it lives: its task is most of that, and easily grows.

use super::*;
use crate::proxy::pressure::Pressure;

/// Bytes of the tasks of a connection through a tunnel, for its client's agent and its server's.
const OUTBOUND: usize = 1552;
const INBOUND: usize = 3584;

#[tokio::test]
async fn tasks_of_connections_stay_small() {
    let node = Node::new().await;
    let (mut web, _policy) = node.pod("web", None, None);
    let shared = &node.proxy.0;
    let (_app, stream) = pair().await;
    let source = SocketAddr::new(WEB.parse().unwrap(), 40_000);
    let cart = SocketAddr::new(CART.parse().unwrap(), 80);
    let enter = |web: &Serving<Scripted>, direction| {
        web.lane(direction).enter(cart.ip(), Pressure::None).expect("a place")
    };
    let placed =
        Box::new(Placed { client: Client::Connected(stream), place: enter(&web, Direction::Outbound) });
    let routed = outbound::route(
        &shared.feed.world(),
        "web",
        source,
        OriginalDst(cart),
        &web.pod.choices,
        &mut web.outbound,
    );
    let pod = web.pod.clone();
    let outbound::Way::Tunnel(client, endpoint, order) = &routed.way else { panic!("{routed:?}") };
    let tried = attempts::Tried::nothing();
    let call = outbound::Call { shared, pod: &pod, routed: &routed, tried: &tried };
    let tunnel = call.tunnel(placed, client, endpoint, *order);
    let (_app, stream) = pair().await;
    let arrival = Box::new(Arrival {
        client: Client::Connected(stream),
        source: ClientAddr(source),
        destination: PodAddr(cart),
        order: web.inbound.next((source.ip(), 80)),
        place: Ok(enter(&web, Direction::Inbound)),
    });
    let inbound = inbound::carry(shared, &pod, arrival, &web.arrivals);
    let sizes = (size_of_val(&tunnel), size_of_val(&inbound));
    assert!(sizes.0 <= OUTBOUND && sizes.1 <= INBOUND, "outbound, inbound: {sizes:?}");
}
