//! Bytes that pass from one socket to another inside the kernel, through a pipe (splice(2)): for bulk between two sockets in
//! plaintext, where a buffer of ours would cost a copy in and one out.
//!
//! Promises that a pipe counts as the full buffer that it stands for, that there are few of them, and that none is kept by who
//! holds no bytes. What a pipe cannot tell, ends and urgent data, is left to reads.

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, SpliceFFlags, splice},
    unistd::pipe2,
};
use tokio::{io::Interest, net::TcpStream};

use super::buffer::{FULL, Hold, Share};

/// Pipes of the agent at a time, two descriptors each.
const PIPES: usize = 64;
/// Of which a thread keeps so many that are empty.
const KEPT: usize = 2;

static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn open() -> Option<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(spare);
        }
        if OPEN.fetch_add(1, Ordering::Relaxed) < PIPES
            && let Ok((out, into)) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        {
            return Some(Self { out, into });
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// For who comes next. It is empty.
    fn keep(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < KEPT {
                spare.push(self);
            }
        });
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes in a pipe between two sockets.
#[derive(Debug)]
pub(super) struct Piped {
    pipe: Option<Pipe>,
    bytes: usize,
    _hold: Hold,
}

impl Piped {
    /// Takes what `source` has, up to a full buffer. Nothing if that is to be found out by a read: there may be nothing, an end,
    /// or no pipe.
    pub(super) fn take(source: &TcpStream, share: &Arc<Share>) -> io::Result<Option<Self>> {
        let Some(hold) = share.try_hold_full() else { return Ok(None) };
        let Some(pipe) = Pipe::open() else { return Ok(None) };
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        match splice(source, None, &pipe.into, None, FULL, flags) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EINTR | Errno::EINVAL) => {
                pipe.keep();
                Ok(None)
            }
            Ok(bytes) => Ok(Some(Self { pipe: Some(pipe), bytes, _hold: hold })),
            Err(error) => {
                pipe.keep();
                Err(error.into())
            }
        }
    }

    /// How many bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Writes what the socket takes; answers how many bytes that is.
    pub(super) fn poll_write_to(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let Some(pipe) = &self.pipe else { return Poll::Ready(Ok(0)) };
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        loop {
            ready!(sink.poll_write_ready(cx))?;
            let written = sink.try_io(Interest::WRITABLE, || {
                splice(&pipe.out, None, sink, None, self.bytes, flags).map_err(io::Error::from)
            });
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(written) => {
                    self.bytes -= written.min(self.bytes);
                    if self.bytes == 0
                        && let Some(pipe) = self.pipe.take()
                    {
                        pipe.keep();
                    }
                    return Poll::Ready(Ok(written));
                }
            }
        }
    }
}
