//! Reads and writes of sockets by shared reference, so that somebody can watch a socket for its failure meanwhile. As tokio's
//! own, a read or write that the kernel cuts short tells that there is no more to be had: nobody asks again before an event.

use std::{
    io::{self, IoSlice, Read as _},
    pin::pin,
    task::{Context, Poll, ready},
};

use nix::libc;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::capture::is_at_mark;

/// Reads what is there, up to `room`; 0 at the end.
pub(crate) fn poll_read(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    poll_take(cx, socket, room, |_| false)
}

/// The same where urgent data may be among the rest: a read that is cut short in front of it is not the last. Neither is one of a
/// socket whose other end `has_ended`, as what is behind it is read at once.
pub(super) fn poll_read_urgent(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    room: &mut [u8],
    has_ended: bool,
) -> Poll<io::Result<usize>> {
    poll_take(cx, socket, room, |raw| has_ended || is_at_mark(&**raw))
}

/// The same where the kernel opens records: a read is cut short in front of one that is no data, and who does not ask again is not
/// told of what stands behind.
pub(super) fn poll_read_records(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    poll_take(cx, socket, room, |_| true)
}

/// Reads what a socket has at this moment of which tokio knows nothing yet, as it is new; [`ErrorKind::WouldBlock`] if there is nothing.
///
/// [`ErrorKind::WouldBlock`]: io::ErrorKind::WouldBlock
pub(super) fn read_new(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut told = false;
    let wanted = room.len();
    let read = |raw: &SockRef<'_>| {
        told = true;
        (&**raw).read(room)
    };
    let known = attempt(socket, Interest::READABLE, wanted, read, |raw| is_at_mark(&**raw))?;
    match known {
        Some(read) => Ok(read),
        None if told => Err(io::ErrorKind::WouldBlock.into()),
        None => (&*SockRef::from(socket)).read(room),
    }
}

/// How bytes are written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Tokio may know nothing of the socket yet, as that is new: it is tried, which spares it a round of events.
    pub(crate) new: bool,
    /// More is written, or the direction is ended, at once: that goes out in the same packet (tcp(7), `MSG_MORE`).
    pub(crate) more: bool,
}

impl Manner {
    fn flags(self) -> libc::c_int {
        if self.more { libc::MSG_MORE } else { 0 }
    }
}

/// Writes what the socket takes, of which there is something.
pub(crate) fn poll_write(cx: &mut Context<'_>, socket: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    poll_write_as(cx, socket, bytes, Manner::default())
}

/// The same in a manner.
pub(super) fn poll_write_as(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    bytes: &[u8],
    manner: Manner,
) -> Poll<io::Result<usize>> {
    poll_put(cx, socket, bytes.len(), manner.new, |raw| raw.send_with_flags(bytes, manner.flags()))
}

/// The same for bytes in pieces.
pub(super) fn poll_write_vectored(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    pieces: &[IoSlice<'_>],
    manner: Manner,
) -> Poll<io::Result<usize>> {
    let len = pieces.iter().map(|piece| piece.len()).sum();
    poll_put(cx, socket, len, manner.new, |raw| raw.send_vectored_with_flags(pieces, manner.flags()))
}

/// Whether it is known that the other end of a readable socket has ended.
pub(super) fn is_read_closed(cx: &mut Context<'_>, socket: &TcpStream) -> bool {
    // It is ready, so that this leaves no waiter behind.
    match pin!(socket.ready(Interest::READABLE)).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        _ => false,
    }
}

/// Ends one direction of a socket.
pub(crate) fn shut(socket: &TcpStream) -> io::Result<()> {
    match SockRef::from(socket).shutdown(std::net::Shutdown::Write) {
        // The other end has closed both ways already.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

fn poll_take(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    room: &mut [u8],
    goes_on: impl Fn(&SockRef<'_>) -> bool,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let wanted = room.len();
        let read = |raw: &SockRef<'_>| (&**raw).read(room);
        if let Some(read) = attempt(socket, Interest::READABLE, wanted, read, &goes_on)? {
            return Poll::Ready(Ok(read));
        }
    }
}

fn poll_put(
    cx: &mut Context<'_>,
    socket: &TcpStream,
    len: usize,
    new: bool,
    mut write: impl FnMut(&SockRef<'_>) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match socket.poll_write_ready(cx)? {
            Poll::Ready(()) => {}
            // Who waits is called by the first event, and no event can be missed.
            Poll::Pending if new => {
                return match write(&SockRef::from(socket)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                    Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => Poll::Ready(written),
                };
            }
            Poll::Pending => return Poll::Pending,
        }
        match attempt(socket, Interest::WRITABLE, len, &mut write, |_| false)? {
            Some(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Some(written) => return Poll::Ready(Ok(written)),
            None => {}
        }
    }
}

/// What one system call moved; `None` if the socket was not ready after all. One that moved less than was wanted has used up
/// what there was, unless it `goes_on`.
fn attempt(
    socket: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce(&SockRef<'_>) -> io::Result<usize>,
    goes_on: impl Fn(&SockRef<'_>) -> bool,
) -> io::Result<Option<usize>> {
    let mut moved = None;
    let tried = socket.try_io(interest, || {
        let raw = SockRef::from(socket);
        let done = call(&raw)?;
        moved = Some(done);
        let used_up = done > 0 && done < wanted && !goes_on(&raw);
        if used_up { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match tried {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(moved),
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{
        io::AsyncReadExt as _,
        net::TcpListener,
        time::{sleep, timeout},
    };

    use super::*;
    use crate::capture::segments_received;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async {
            listener.accept().await
        });
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn the_end_goes_out_with_what_was_said_to_be_followed_by_it() {
        let (near, mut far) = pair().await;
        let before = segments_received(&far).unwrap();
        let manner = Manner { new: true, more: true };
        assert_eq!(poll_fn(|cx| poll_write_as(cx, &near, b"the end", manner)).await.unwrap(), 7);
        shut(&near).unwrap();
        let mut received = Vec::new();
        timeout(Duration::from_secs(5), far.read_to_end(&mut received)).await.unwrap().unwrap();
        assert_eq!((&received[..], segments_received(&far).unwrap() - before), (&b"the end"[..], 1));
    }

    #[tokio::test]
    async fn a_new_socket_is_read_and_written_before_tokio_knows_of_it() {
        let (near, far) = pair().await;
        let raw = near.into_std().unwrap();
        let near = TcpStream::from_std(raw).unwrap();
        let mut room = [0; 8];
        assert_eq!(read_new(&near, &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        let manner = Manner { new: true, more: false };
        assert!(matches!(poll_write_as(cx, &near, b"words", manner), Poll::Ready(Ok(5))));
        assert!(matches!(poll_write(cx, &near, b"words"), Poll::Pending), "nobody has asked for events");
        far.writable().await.unwrap();
        assert_eq!(far.try_write(b"answer").unwrap(), 6);
        sleep(Duration::from_millis(20)).await;
        assert_eq!(read_new(&near, &mut room).unwrap(), 6);
        assert_eq!(read_new(&near, &mut room).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        // What comes later is told of all the same.
        assert_eq!(far.try_write(b"more").unwrap(), 4);
        let more = poll_fn(|cx| poll_read(cx, &near, &mut room));
        assert_eq!(timeout(Duration::from_secs(5), more).await.unwrap().unwrap(), 4);
    }
}
