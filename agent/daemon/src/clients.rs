//! Which clients of a server hold a place: so many at once, and so many of them from one source.
//!
//! Promises that a newcomer is not kept out by those who have proved nothing yet: where there is no room, the one of them that
//! has waited longest gives way, of the source that has most. Who has proved himself is left to the server.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv6Addr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tonic::transport::server::Connected;

/// The places of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: usize,
    each: usize,
    sources: Mutex<HashMap<Source, VecDeque<Arc<Seat>>>>,
}

/// Who counts as one: an IPv4 address, or the 64 bits of an IPv6 address that name a network. Within its network, a host may
/// take as many addresses as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Source(IpAddr);

impl Source {
    /// The source that `addr` belongs to.
    pub(crate) fn of(addr: IpAddr) -> Self {
        Self(match addr.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// A client's place. Dropping it makes room.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    source: Source,
    seat: Arc<Seat>,
}

#[derive(Debug, Default)]
struct Seat {
    proven: AtomicBool,
    lost: Notify,
}

impl Seat {
    fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }
}

impl Places {
    /// So many clients at once, and so many from one source.
    pub(crate) fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(Inner { all, each, sources: Mutex::default() }))
    }

    /// A place for a client from `addr`. None if all that it could have are held by clients who have proved themselves.
    pub(crate) fn take(&self, addr: IpAddr) -> Option<Place> {
        let source = Source::of(addr);
        let mut sources = self.sources();
        if sources.get(&source).is_some_and(|seats| seats.len() >= self.0.each) {
            give_way(&mut sources, source)?;
        } else if sources.values().map(VecDeque::len).sum::<usize>() >= self.0.all {
            let unproven =
                |seats: &VecDeque<Arc<Seat>>| seats.iter().filter(|seat| !seat.is_proven()).count();
            let (most, greediest) = sources.iter().map(|(source, seats)| (unproven(seats), *source)).max()?;
            if most == 0 {
                return None;
            }
            give_way(&mut sources, greediest)?;
        }
        let seat = Arc::new(Seat::default());
        sources.entry(source).or_default().push_back(seat.clone());
        Some(Place { places: self.clone(), source, seat })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<Source, VecDeque<Arc<Seat>>>> {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the place of the source's oldest client that has proved nothing; none if there is no such client.
fn give_way(sources: &mut HashMap<Source, VecDeque<Arc<Seat>>>, source: Source) -> Option<()> {
    let seats = sources.get_mut(&source)?;
    let at = seats.iter().position(|seat| !seat.is_proven())?;
    seats.remove(at)?.lost.notify_one();
    if seats.is_empty() {
        sources.remove(&source);
    }
    Some(())
}

impl Place {
    /// Returns when another client has got this place.
    pub(crate) async fn lost(&self) {
        self.seat.lost.notified().await;
    }

    /// The client has proved who it is: its place is not given to another.
    pub(crate) fn prove(&self) {
        self.seat.proven.store(true, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.places.sources();
        if let Some(seats) = sources.get_mut(&self.source) {
            seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
            if seats.is_empty() {
                sources.remove(&self.source);
            }
        }
    }
}

/// A client's connection for a gRPC server, which reads as ended by the client once its time is over.
pub(crate) struct Held<S, I> {
    stream: S,
    info: I,
    /// None once it is over.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S, I> Held<S, I> {
    /// `stream` until `over` returns; requests are told `info`.
    pub(crate) fn until(over: impl Future<Output = ()> + Send + 'static, stream: S, info: I) -> Self {
        Self { stream, info, over: Some(Box::pin(over)) }
    }
}

impl<S, I> fmt::Debug for Held<S, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("over", &self.over.is_none()).finish_non_exhaustive()
    }
}

impl<S, I: Clone + Send + Sync + 'static> Connected for Held<S, I> {
    type ConnectInfo = I;

    fn connect_info(&self) -> I {
        self.info.clone()
    }
}

impl<S: AsyncRead + Unpin, I: Unpin> AsyncRead for Held<S, I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.over.as_mut().is_none_or(|over| over.as_mut().poll(context).is_ready());
        if ended {
            self.over = None;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin, I: Unpin> AsyncWrite for Held<S, I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn from(host: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, host).into()
    }

    fn is_lost(place: &Place) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(place.lost()).poll(&mut context).is_ready()
    }

    #[test]
    fn the_oldest_of_a_source_that_has_enough_gives_way() {
        let places = Places::new(100, 3);
        let held: Vec<Place> = (0..3).map(|_| places.take(from(1)).unwrap()).collect();
        held[0].prove();
        let newest = places.take(from(1)).unwrap();
        assert_eq!([&held[0], &held[1], &held[2], &newest].map(is_lost), [false, true, false, false]);
        held[2].prove();
        newest.prove();
        assert!(places.take(from(1)).is_none(), "one who has proved himself has lost his place");
        assert!(places.take(from(2)).is_some());
    }

    #[test]
    fn a_crowd_gives_way_to_one_who_comes_from_elsewhere() {
        let places = Places::new(6, 4);
        let single = places.take(from(9)).unwrap();
        let held: Vec<Place> = [1, 1, 2, 2, 2].map(|host| places.take(from(host)).unwrap()).into();
        let other = places.take(from(8)).unwrap();
        assert!(is_lost(&held[2]) && !is_lost(&single) && !is_lost(&other));
        assert_eq!(held.iter().filter(|place| is_lost(place)).count(), 0, "only one has lost its place");
        for place in held.iter().chain([&single, &other]) {
            place.prove();
        }
        assert!(places.take(from(7)).is_none());
        drop(other);
        assert!(places.take(from(7)).is_some(), "a place that was left is free");
        drop((held, single));
        assert!(places.sources().is_empty(), "nothing is kept of those who have gone");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("fd00::1:2:3:4:5"), of("fd00::1:ffff:1:2:3"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00:0:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
