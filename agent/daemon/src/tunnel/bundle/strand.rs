//! A stream's part in a bundle: what it says and gets there, in order with what takes its own connection.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use ambit_core::frame::{
    Mark, Strand as StrandId,
    parcel::{Head, MAX, WINDOW},
};
use tokio::{io::ReadBuf, net::TcpStream};

use super::{Bundle, lock};
use crate::tunnel::{TunnelError, socket};

/// What has come for a stream, and what is known of what it has said.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    slot: Mutex<Slot>,
    /// How many of its parcels the other end's application has got.
    taken: AtomicU32,
    /// A connection broke off, and with it perhaps what was on its way.
    broken: AtomicBool,
}

#[derive(Debug, Default)]
struct Slot {
    parcels: VecDeque<Parcel>,
    waker: Option<Waker>,
}

/// A message, and how many bytes of the stream's own connection come before it.
#[derive(Debug)]
struct Parcel {
    before: u64,
    bytes: Box<[u8]>,
}

impl Inbox {
    /// Takes what has come; answers whom to wake. An error if the peer sends more than it may.
    pub(super) fn put(&self, head: Head, bytes: &[u8]) -> Result<Option<Waker>, TunnelError> {
        self.acknowledge(head.taken);
        let mut slot = lock(&self.slot);
        if slot.parcels.len() >= WINDOW as usize {
            return Err(TunnelError::Unexpected("parcel"));
        }
        slot.parcels.push_back(Parcel { before: head.before, bytes: bytes.into() });
        Ok(slot.waker.take())
    }

    /// The other end's application has got so many. Word of that comes two ways, so that the later may be here first.
    fn acknowledge(&self, taken: u32) {
        let later = |known: u32| (taken.wrapping_sub(known) <= WINDOW).then_some(taken);
        // What is known already changes nothing.
        let _: Result<u32, u32> = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later);
    }

    /// Nothing more comes or goes.
    pub(super) fn break_off(&self) -> Option<Waker> {
        self.broken.store(true, Ordering::Release);
        lock(&self.slot).waker.take()
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

/// What comes next for a stream's application.
pub(crate) enum Next {
    /// A parcel.
    Parcel,
    /// What its own connection brings.
    Direct,
}

/// A stream's part in a bundle.
#[derive(Debug)]
pub(crate) struct Strand {
    bundle: Arc<Bundle>,
    number: u32,
    inbox: Arc<Inbox>,
    /// The peer takes parcels.
    accepted: bool,
    /// FIN has gone, or goes next.
    ended: bool,
    /// Parcels that it has sent, and how many of these its own connection has been told of.
    pub(super) sent: u32,
    marked: u32,
    /// Parcels that the application has got, and how many come before what its own connection brings next: as many, or some more.
    got: u32,
    due: u32,
    /// How many of these the peer knows of.
    told: u32,
    /// The parcel that the application gets, and how much of it that has got.
    current: Option<Box<[u8]>>,
    written: usize,
}

impl Strand {
    pub(super) fn new(bundle: Arc<Bundle>, number: u32, inbox: Arc<Inbox>) -> Self {
        Self {
            bundle,
            number,
            inbox,
            accepted: false,
            ended: false,
            sent: 0,
            marked: 0,
            got: 0,
            due: 0,
            told: 0,
            current: None,
            written: 0,
        }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> StrandId {
        StrandId { bundle: self.bundle.id, number: self.number }
    }

    /// The bundle, for who makes its connection.
    pub(crate) fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// The peer has said whether it takes parcels.
    pub(crate) fn answered(&mut self, bundles: bool) {
        self.accepted = bundles;
    }

    /// Says nothing more there.
    pub(crate) fn keep_away(&mut self) {
        self.accepted = false;
    }

    /// Whether something has come that the application has not taken.
    pub(crate) fn is_delivering(&self) -> bool {
        self.current.is_some()
    }

    /// Takes a message, behind `before` bytes on the stream's own connection, if it goes by the bundle.
    pub(crate) fn offer(&mut self, bytes: &[u8], before: u64) -> bool {
        let waiting = self.sent.wrapping_sub(self.inbox.taken.load(Ordering::Relaxed));
        let fits = (1..=MAX).contains(&bytes.len()) && waiting < WINDOW;
        let may = fits && self.accepted && !self.ended && !self.inbox.is_broken();
        let len = bytes.len() as u16;
        let taken =
            may && self.bundle.offer(Head { strand: self.number, taken: self.got, before, len }, bytes);
        if taken {
            self.sent = self.sent.wrapping_add(1);
            self.told = self.got;
        }
        taken
    }

    /// Whether there is something of parcels that the peer has to be told before more goes over the stream's own connection.
    pub(crate) fn is_unmarked(&self) -> bool {
        !self.ended && (self.marked != self.sent || self.told != self.got)
    }

    /// The stream has ended this way: nothing more goes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// What the peer has to be told, and is told now.
    pub(crate) fn take_mark(&mut self) -> Option<Mark> {
        let unmarked = self.is_unmarked();
        (self.marked, self.told) = (self.sent, self.got);
        unmarked.then_some(Mark { parcels: self.sent, taken: self.got })
    }

    /// What its own connection brings next comes behind so many parcels.
    pub(crate) fn expect(&mut self, Mark { parcels, taken }: Mark) -> Result<(), TunnelError> {
        self.inbox.acknowledge(taken);
        // No more than could be on their way.
        if parcels.wrapping_sub(self.got) > WINDOW {
            return Err(TunnelError::Unexpected("MARK"));
        }
        self.due = parcels;
        Ok(())
    }

    /// What comes next, behind `before` bytes that the application has got from the stream's own connection.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>, before: u64) -> Poll<Result<Next, TunnelError>> {
        if self.current.is_some() {
            return Poll::Ready(Ok(Next::Parcel));
        }
        let mut slot = lock(&self.inbox.slot);
        if let Some(first) = slot.parcels.pop_front_if(|first| first.before <= before) {
            if first.before < before {
                return Poll::Ready(Err(TunnelError::Unexpected("parcel")));
            }
            drop(slot);
            self.current = Some(first.bytes);
            return Poll::Ready(Ok(Next::Parcel));
        }
        let waits = self.due != self.got;
        if waits && !slot.parcels.is_empty() {
            return Poll::Ready(Err(TunnelError::Unexpected("MARK")));
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        drop(slot);
        if self.inbox.is_broken() {
            let lost = self.sent != self.inbox.taken.load(Ordering::Relaxed);
            if lost || waits {
                return Poll::Ready(Err(TunnelError::Closed));
            }
        }
        if waits { Poll::Pending } else { Poll::Ready(Ok(Next::Direct)) }
    }

    /// Writes the parcel to `sink`; answers how many bytes that took.
    pub(crate) fn poll_write_to(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let bytes = self.current.as_deref().unwrap_or_default();
        let written = ready!(socket::poll_write(cx, sink, &bytes[self.written..]))?;
        self.delivered(written);
        Poll::Ready(Ok(written))
    }

    /// Copies the parcel to `room`, as much as fits.
    pub(crate) fn copy_to(&mut self, room: &mut ReadBuf<'_>) {
        let bytes = &self.current.as_deref().unwrap_or_default()[self.written..];
        let len = bytes.len().min(room.remaining());
        room.put_slice(&bytes[..len]);
        self.delivered(len);
    }

    fn delivered(&mut self, bytes: usize) {
        self.written += bytes;
        if self.current.as_ref().is_some_and(|parcel| parcel.len() == self.written) {
            (self.current, self.written) = (None, 0);
            let waits = self.due != self.got;
            self.got = self.got.wrapping_add(1);
            if !waits {
                self.due = self.got;
            }
        }
    }

    /// Nothing passes for the moment.
    pub(crate) fn rest(&mut self) {
        let mut slot = lock(&self.inbox.slot);
        if slot.parcels.is_empty() {
            slot.parcels = VecDeque::new();
        }
    }
}

impl Drop for Strand {
    fn drop(&mut self) {
        self.bundle.leave(self.number);
    }
}
