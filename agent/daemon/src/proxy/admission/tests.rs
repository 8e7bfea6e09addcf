use std::{future::pending, time::Duration};

use tokio::time::timeout;

use super::*;

fn limited(unfinished: usize, finished: usize) -> Admission {
    Admission::limited(Limits { unfinished, lane_unfinished: unfinished / 2, finished, lane_buffers: 0 })
}

fn inbound(admission: &Admission, pod: &str) -> Arc<Lane> {
    admission.lane(&pod.into(), Direction::Inbound)
}

fn client(number: u32) -> IpAddr {
    IpAddr::from((0xc612_0000 + number).to_be_bytes())
}

/// Whether it has not been told to leave.
async fn stays(place: &mut Place) -> bool {
    let begun = place.begin(pending::<Result<(), Refusal>>());
    match timeout(Duration::from_millis(1), begun).await {
        Err(_) => true,
        Ok(Err(refusal)) if refusal.reason == Reason::Overloaded => false,
        Ok(other) => panic!("{other:?}"),
    }
}

/// How many of them are left.
async fn left(places: &mut [Place]) -> usize {
    let mut left = 0;
    for place in places {
        left += usize::from(stays(place).await);
    }
    left
}

async fn finish(place: &mut Place) -> Result<(), Refusal> {
    place.begin(async { Ok(()) }).await
}

/// As many finished ones of `party` as there may be.
async fn fill(lane: &Arc<Lane>, party: impl Fn(u32) -> IpAddr) -> Vec<Place> {
    let mut held = Vec::new();
    for number in 0.. {
        let Ok(mut place) = lane.enter(party(number), Pressure::None) else { break };
        if finish(&mut place).await.is_err() {
            break;
        }
        held.push(place);
    }
    held
}

#[tokio::test(start_paused = true)]
async fn a_flood_on_one_pod_costs_no_other_pod_a_connection() {
    let admission = Admission::new(Capacity { files: 1 << 20, memory: 8 << 30 });
    let (flooded, quiet) = (inbound(&admission, "flooded"), inbound(&admission, "quiet"));
    let mut before: Vec<_> =
        (0..10).map(|number| quiet.enter(client(number), Pressure::None).unwrap()).collect();
    // From as many addresses as there are connections: nobody is heavier than anybody else.
    let mut flood: Vec<_> =
        (0..8400).map(|number| flooded.enter(client(number), Pressure::None).unwrap()).collect();
    let mut after: Vec<_> =
        (0..10).map(|number| quiet.enter(client(number), Pressure::None).unwrap()).collect();
    assert_eq!((left(&mut before).await, left(&mut after).await), (10, 10));
    assert_eq!(left(&mut flood).await, UNFINISHED / 2);
    drop((before, flood, after));
    assert_eq!(admission.0.unfinished.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn many_flooded_pods_cost_the_heaviest_of_them() {
    let admission = limited(100, 1000);
    let quiet = inbound(&admission, "quiet");
    let mut first = quiet.enter(client(0), Pressure::None).unwrap();
    let mut floods = Vec::new();
    for pod in 0..5 {
        let lane = inbound(&admission, &format!("flooded-{pod}"));
        floods.push(
            (0..50).map(|number| lane.enter(client(number), Pressure::None).unwrap()).collect::<Vec<_>>(),
        );
    }
    assert!(stays(&mut first).await);
    assert!(stays(&mut quiet.enter(client(1), Pressure::None).unwrap()).await);
    let mut kept = Vec::new();
    for flood in &mut floods {
        kept.push(left(flood).await);
    }
    assert_eq!(kept.iter().sum::<usize>(), 98, "{kept:?}");
    assert!(kept.iter().all(|kept| (18..=21).contains(kept)), "all the same: {kept:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_client_costs_no_other_client_of_the_pod() {
    let admission = limited(1000, 1000);
    let lane = inbound(&admission, "flooded");
    let mut others: Vec<_> =
        (1..=20).map(|number| lane.enter(client(number), Pressure::None).unwrap()).collect();
    let mut flood: Vec<_> = (0..5000).map(|_| lane.enter(client(0), Pressure::None).unwrap()).collect();
    others.extend((21..=40).map(|number| lane.enter(client(number), Pressure::None).unwrap()));
    assert_eq!(left(&mut others).await, 40);
    let (oldest, newest) = flood.split_at_mut(4540);
    assert_eq!((left(oldest).await, left(newest).await), (0, 460), "the oldest have made room");
    assert!(lane.is_crowded());
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_tunnel_that_reach_no_application_are_unfinished_as_well() {
    let admission = limited(10, 1000);
    let lane = inbound(&admission, "stuck");
    let mut tunnels = fill(&lane, |_| client(0)).await;
    tunnels.truncate(20);
    let mut other = lane.enter(client(1), Pressure::None).unwrap();
    let streams = tunnels.iter().map(|tunnel| async {
        let stream = tunnel.begin_stream(pending::<Result<(), Refusal>>());
        matches!(timeout(Duration::from_millis(20), stream).await, Ok(Err(_)))
    });
    let mut refused = 0;
    let mut streams: Vec<_> = streams.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        streams.retain_mut(|stream| match stream.as_mut().poll(cx) {
            std::task::Poll::Ready(evicted) => {
                refused += usize::from(evicted);
                false
            }
            std::task::Poll::Pending => true,
        });
        if streams.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert!(refused >= 14, "{refused}");
    assert!(stays(&mut other).await);
}

#[tokio::test(start_paused = true)]
async fn open_connections_of_one_pod_or_client_leave_room_for_the_next() {
    let admission = limited(1000, 1200);
    let lane = inbound(&admission, "a");
    let greedy = fill(&lane, |_| client(0)).await;
    assert_eq!(greedy.len(), 400, "one client has a third");
    let more = fill(&lane, |number| client(1 + number)).await;
    assert_eq!(greedy.len() + more.len(), 600, "one pod has half");
    let refusal = lane.enter(client(7000), Pressure::None).unwrap_err();
    assert_eq!(refusal.reason, Reason::Overloaded);
    let second = fill(&inbound(&admission, "b"), client).await;
    assert_eq!(second.len(), 300, "half of what is left");
    for pod in 0..30 {
        let lane = inbound(&admission, &format!("hostile-{pod}"));
        std::mem::forget(fill(&lane, client).await);
    }
    let late = fill(&inbound(&admission, "late"), client).await;
    assert!(late.len() >= RESERVE, "{}", late.len());
    drop((greedy, more, second));
    assert!(lane.enter(client(0), Pressure::None).is_ok());
    assert_eq!(lane.state().by_party.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_have_all_its_connections_to_one_destination() {
    let admission = limited(1000, 1200);
    let lane = admission.lane(&"a".into(), Direction::Outbound);
    let held = fill(&lane, |_| client(0)).await;
    assert_eq!(held.len(), 600);
    assert!(inbound(&admission, "a").enter(client(1), Pressure::None).is_ok(), "and others come in");
}

#[test]
fn limits_follow_what_the_process_may_hold() {
    let limits = |files, memory| Limits::of(Capacity { files, memory });
    let usual = limits(1 << 20, 1 << 30);
    assert_eq!((usual.unfinished, usual.finished), (8192, 16_384 - 1024));
    let few = limits(20_000, 8 << 30);
    assert_eq!((few.unfinished, few.lane_unfinished, few.finished), (2500, 1250, 6446));
    for files in [0, 1, 16, 64, 1024, 65_536, u64::MAX] {
        let Limits { unfinished, finished, .. } = limits(files, u64::MAX);
        assert!(2 * (unfinished + finished) as u64 <= files, "{files}");
    }
}

#[test]
fn buffers_are_cut_in_a_crowd() {
    let limits = Limits::of(Capacity { files: 1 << 20, memory: 1 << 30 });
    let cut = [FREE_BUFFERS - 1, FREE_BUFFERS, 512, 30_000].map(|count| limits.buffers(count));
    assert_eq!(cut, [None, Some(128 * 1024), Some(16 * 1024), Some(8 * 1024)]);
}

#[test]
fn a_pod_has_a_few_connections_when_memory_is_scarce() {
    let admission = limited(1000, 1000);
    let lane = inbound(&admission, "a");
    let enter = |pressure| lane.enter(client(0), pressure);
    assert_eq!(enter(Pressure::Short).unwrap().buffers(), Some(SMALLEST_BUFFER));
    let held: Vec<_> = std::iter::from_fn(|| enter(Pressure::Scarce).ok()).collect();
    assert_eq!(held.len(), RESERVE);
    assert!(enter(Pressure::Short).is_ok());
}
