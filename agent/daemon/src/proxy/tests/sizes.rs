//! What a connection takes while it lives: its task is most of that, and easily grows.

use super::*;
use crate::proxy::pressure::Pressure;

/// Bytes of the tasks of a connection through a tunnel, for its client's agent and its server's.
const OUTBOUND: usize = 64;
const INBOUND: usize = 64;
/// Of what carries bytes to the application, which stands on the heap beside the server's.
const CARRYING: usize = 64;

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
    let (app, stream) = pair().await;
    let connection = shared.telemetry.open(describe::outbound(&routed, None));
    let carrying = crate::proxy::requests::Call {
        shared,
        pod: &pod,
        workload: client,
        source,
        facts: facts(PodAddr(cart), source.ip(), None),
        peer: None,
        connection: &connection,
    };
    let carrying = carrying.carry(app, crate::tunnel::Plain::new(stream, pod.share.clone()));
    let sizes = [size_of_val(&tunnel), size_of_val(&inbound), size_of_val(&carrying)];
    let within = sizes.iter().zip([OUTBOUND, INBOUND, CARRYING]).all(|(size, most)| *size <= most);
    assert!(within, "outbound, inbound, carrying: {sizes:?}");
}
