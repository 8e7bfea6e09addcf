//! Two connections and what is on its way between them.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    ops::Range,
};

use nix::sys::epoll::EpollFlags;

/// Bytes of a buffer, and so of a read: as many as ambit's agents take at a time.
const BUFFER: usize = 128 * 1024;
/// Buffers that are kept for the next read.
const KEPT: usize = 64;
/// A frame's length, or a word.
const WORD: usize = size_of::<u32>();
/// An application has connected.
const OPEN: u32 = u32::MAX;
/// An application has ended its direction.
const END: u32 = 0;

/// Buffers that nobody holds.
#[derive(Default)]
pub(super) struct Buffers(Vec<Box<[u8]>>);

impl Buffers {
    fn take(&mut self) -> Box<[u8]> {
        self.0.pop().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
    }

    fn give_back(&mut self, buffer: Box<[u8]>) {
        if self.0.len() < KEPT {
            self.0.push(buffer);
        }
    }
}

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socketed {
    App,
    Other,
}

/// What has become of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// It waits for events.
    Waits,
    /// The other relay's application has connected: ours is to be dialled.
    Opens,
    /// No application is connected, and another may be.
    Rests,
    /// There is nothing left of it.
    Over,
}

/// An application's connection, and the one that its bytes go on by.
pub(super) struct Pair {
    pub(super) way: usize,
    app: Option<End>,
    other: End,
    /// Other applications follow on the other connection.
    framed: bool,
    /// The other relay is to be told of the application.
    opens: bool,
    up: Held,
    down: Held,
    /// Bytes of a frame that are still to come.
    left: usize,
}

/// A socket, and what is known of it.
struct End {
    socket: TcpStream,
    readable: bool,
    /// The other end has ended its direction: a short read is not the last.
    hung_up: bool,
    /// All has been read.
    ended: bool,
    /// All has been written.
    shut: bool,
}

/// Bytes between a read and a write.
#[derive(Default)]
struct Held(Option<(Box<[u8]>, Range<usize>)>);

impl End {
    fn new(socket: TcpStream) -> Self {
        Self { socket, readable: true, hung_up: false, ended: false, shut: false }
    }

    /// What a read brings; `None` if there is nothing.
    fn read(&mut self, room: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.read(room) {
            Ok(0) => {
                self.readable = false;
                self.ended = true;
                Ok(Some(0))
            }
            Ok(read) => {
                self.readable = read == room.len() || self.hung_up;
                Ok(Some(read))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.socket.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    fn shut(&mut self) -> io::Result<()> {
        self.shut = true;
        self.socket.shutdown(Shutdown::Write)
    }
}

impl Held {
    /// Writes what is held; whether all of it has gone.
    fn flush(&mut self, to: &mut End, buffers: &mut Buffers) -> io::Result<bool> {
        let Some((buffer, range)) = &mut self.0 else { return Ok(true) };
        while range.start < range.end {
            match to.write(&buffer[range.clone()])? {
                0 => return Ok(false),
                written => range.start += written,
            }
        }
        if let Some((buffer, _)) = self.0.take() {
            buffers.give_back(buffer);
        }
        Ok(true)
    }
}

impl Pair {
    /// An application that connects to us, and the connection that it goes on by.
    pub(super) fn from_application(way: usize, app: TcpStream, other: TcpStream, framed: bool) -> Self {
        Self { app: Some(End::new(app)), opens: framed, framed, ..Self::new(way, other) }
    }

    /// Another relay that connects to us.
    pub(super) fn from_relay(way: usize, other: TcpStream) -> Self {
        Self { framed: true, ..Self::new(way, other) }
    }

    fn new(way: usize, other: TcpStream) -> Self {
        let (up, down) = (Held::default(), Held::default());
        Self { way, app: None, other: End::new(other), framed: false, opens: false, up, down, left: 0 }
    }

    /// Gets an application's connection: one that has come, or one that has been asked for.
    pub(super) fn open(&mut self, app: TcpStream) {
        // Who has asked for it has said so in the frame that stands in `down`.
        self.opens = self.down.0.is_none();
        self.app = Some(End::new(app));
    }

    pub(super) fn told(&mut self, side: Socketed, events: EpollFlags) {
        let end = match (side, &mut self.app) {
            (Socketed::App, Some(app)) => app,
            // Of one that has been closed meanwhile.
            (Socketed::App, None) => return,
            (Socketed::Other, _) => &mut self.other,
        };
        end.readable |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        end.hung_up |= events.contains(EpollFlags::EPOLLRDHUP);
    }

    /// Moves all that can be moved.
    pub(super) fn pump(&mut self, buffers: &mut Buffers) -> io::Result<Stand> {
        self.pump_up(buffers)?;
        let stand = self.pump_down(buffers)?;
        if stand != Stand::Waits || !self.is_carried() {
            return Ok(stand);
        }
        self.app = None;
        Ok(if self.framed { Stand::Rests } else { Stand::Over })
    }

    /// Whether both directions have ended.
    fn is_carried(&self) -> bool {
        self.up.0.is_none() && self.app.as_ref().is_some_and(|app| app.ended && app.shut)
    }

    /// From the application's connection to the other.
    fn pump_up(&mut self, buffers: &mut Buffers) -> io::Result<()> {
        let Some(app) = &mut self.app else { return Ok(()) };
        while self.up.flush(&mut self.other, buffers)? && app.readable && !app.ended {
            let mut buffer = buffers.take();
            let read = app.read(&mut buffer[2 * WORD..]);
            let range = match read {
                Ok(Some(bytes)) if self.framed => framed(&mut buffer, bytes, &mut self.opens),
                Ok(None) if self.opens => opened(&mut buffer, &mut self.opens),
                Ok(Some(bytes)) => 2 * WORD..2 * WORD + bytes,
                _ => 0..0,
            };
            if range.is_empty() {
                buffers.give_back(buffer);
                read?;
            } else {
                self.up.0 = Some((buffer, range));
            }
        }
        if app.ended && !self.framed && !self.other.shut && self.up.0.is_none() {
            self.other.shut()?;
        }
        Ok(())
    }

    /// From the other connection to the application's.
    fn pump_down(&mut self, buffers: &mut Buffers) -> io::Result<Stand> {
        loop {
            if !self.deliver(buffers)? {
                return Ok(if self.app.is_none() { Stand::Opens } else { Stand::Waits });
            }
            if self.other.ended {
                let Some(app) = self.app.as_mut().filter(|_| !self.framed) else { return Ok(Stand::Over) };
                if !app.shut {
                    app.shut()?;
                }
                return Ok(Stand::Waits);
            }
            if !self.other.readable {
                return Ok(Stand::Waits);
            }
            // The beginning of a word may stand there.
            let (mut buffer, start) = match self.down.0.take() {
                Some((mut buffer, range)) => {
                    buffer.copy_within(range.clone(), 0);
                    (buffer, range.len())
                }
                None => (buffers.take(), 0),
            };
            let read = self.other.read(&mut buffer[start..]);
            let filled = start + read.as_ref().ok().copied().flatten().unwrap_or(0);
            if filled > 0 {
                self.down.0 = Some((buffer, 0..filled));
            } else {
                buffers.give_back(buffer);
            }
            if read?.is_none() {
                return Ok(Stand::Waits);
            }
        }
    }

    /// Writes what has come to the application; `false` if it does not take it all, or is not there.
    fn deliver(&mut self, buffers: &mut Buffers) -> io::Result<bool> {
        if !self.framed {
            return self.app.as_mut().map_or(Ok(true), |app| self.down.flush(app, buffers));
        }
        while let Some((buffer, range)) = &mut self.down.0 {
            if self.left > 0 && range.start < range.end {
                let Some(app) = &mut self.app else { return Err(ErrorKind::InvalidData.into()) };
                let end = range.end.min(range.start + self.left);
                let written = app.write(&buffer[range.start..end])?;
                if written == 0 {
                    return Ok(false);
                }
                self.left -= written;
                range.start += written;
                continue;
            }
            let Some(word) = buffer[range.clone()].first_chunk::<WORD>() else {
                if range.start == range.end
                    && let Some((buffer, _)) = self.down.0.take()
                {
                    buffers.give_back(buffer);
                }
                return Ok(true);
            };
            match (u32::from_be_bytes(*word), &mut self.app) {
                (OPEN, None) => return Ok(false),
                // The one before has ended: its last word and this one have come together.
                (OPEN, Some(app)) if app.shut => {
                    self.app = None;
                    return Ok(false);
                }
                (OPEN, Some(_)) => {}
                (END, Some(app)) => app.shut()?,
                (_, None) => return Err(ErrorKind::InvalidData.into()),
                (bytes, Some(_)) => self.left = bytes as usize,
            }
            range.start += WORD;
        }
        Ok(true)
    }
}

/// Puts what belongs in front of `bytes` bytes, which stand behind two words; what is to be written of the buffer.
fn framed(buffer: &mut [u8], bytes: usize, opens: &mut bool) -> Range<usize> {
    // A buffer is far shorter than 4 GiB.
    buffer[WORD..2 * WORD].copy_from_slice(&(bytes as u32).to_be_bytes());
    buffer[..WORD].copy_from_slice(&OPEN.to_be_bytes());
    let start = if std::mem::take(opens) { 0 } else { WORD };
    start..2 * WORD + bytes
}

fn opened(buffer: &mut [u8], opens: &mut bool) -> Range<usize> {
    *opens = false;
    buffer[..WORD].copy_from_slice(&OPEN.to_be_bytes());
    0..WORD
}
