//! Bytes between a read and a write: a window on one direction of a connection, in a lent buffer that is given back while nothing
//! is in it.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::tunnel::{Buffer, Hold, LegError, Share, Waiting};

/// The longest head of a message.
pub(super) const LONGEST: usize = 64 * 1024;

/// What bytes come from.
pub(super) trait Source {
    /// Waits until a read would bring something, be it the end.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>>;

    /// Reads what is there; 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<Result<usize, LegError>>;
}

/// What has been read and not yet consumed.
#[derive(Debug, Default)]
pub(super) struct Window {
    room: Room,
    range: Range<usize>,
    waiting: Waiting,
}

#[derive(Debug, Default)]
enum Room {
    #[default]
    None,
    Lent(Buffer),
    /// For what is longer than a lent one.
    Long {
        bytes: Vec<u8>,
        _counts: Hold,
    },
}

impl Room {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Lent(buffer) => buffer,
            Self::Long { bytes, .. } => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::None => &mut [],
            Self::Lent(buffer) => buffer,
            Self::Long { bytes, .. } => bytes,
        }
    }
}

impl Window {
    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.room.bytes()[self.range.clone()]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The first `len` bytes have gone on.
    pub(super) fn consume(&mut self, len: usize) {
        self.range.start += len;
        if self.range.is_empty() {
            self.range = 0..0;
        }
    }

    /// Whether it has as much as a head may have.
    pub(super) fn is_full(&self) -> bool {
        self.range.len() >= LONGEST
    }

    /// Makes room for as much as may be in a head.
    fn lengthen(&mut self, share: &Arc<Share>) {
        let mut bytes = vec![0; LONGEST];
        let len = self.range.len();
        bytes[..len].copy_from_slice(self.bytes());
        self.room = Room::Long { bytes, _counts: share.hold(LONGEST) };
        self.range = 0..len;
    }

    /// Reads more behind what is there, of which there is less than [`LONGEST`]; 0 at the end of `source`.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Source,
        share: &Arc<Share>,
    ) -> Poll<Result<usize, LegError>> {
        if self.is_empty() {
            // An idle connection holds no buffer.
            match source.poll_readable(cx) {
                Poll::Pending => {
                    self.room = Room::None;
                    return Poll::Pending;
                }
                Poll::Ready(readable) => readable?,
            }
        }
        if let Room::None = self.room {
            self.room = Room::Lent(ready!(share.poll_take(cx, &mut self.waiting)));
        }
        let len = self.range.len();
        if self.range.end == self.room.bytes().len() {
            if self.range.start > 0 {
                self.room.bytes_mut().copy_within(self.range.clone(), 0);
                self.range = 0..len;
            } else {
                self.lengthen(share);
            }
        }
        let read = ready!(source.poll_read(cx, &mut self.room.bytes_mut()[self.range.end..]))?;
        self.range.end += read;
        Poll::Ready(Ok(read))
    }
}
