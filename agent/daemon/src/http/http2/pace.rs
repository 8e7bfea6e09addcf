//! How far the frame has come that a client is sending, and whether it comes in time: the library waits for the rest of one for ever.
//! A header block is one with all of its frames (RFC 9113, section 4.3).

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep};

use crate::http::HEAD;

/// Bytes of the preface (RFC 9113, section 3.4), and of a frame's head.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The frames of one client.
#[derive(Debug)]
pub(super) struct Pace {
    preface: usize,
    head: [u8; FRAME_HEAD],
    /// Bytes of `head`.
    read: usize,
    /// Bytes of a payload that are to come.
    left: usize,
    /// A header block has begun and not ended.
    in_block: bool,
    /// Something has ended since the time was set.
    ended: bool,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    pub(super) fn new() -> Self {
        let (head, deadline) = ([0; FRAME_HEAD], None);
        Self { preface: PREFACE, head, read: 0, left: 0, in_block: false, ended: false, deadline }
    }

    /// More has come.
    pub(super) fn see(&mut self, mut bytes: &[u8]) {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        bytes = &bytes[preface..];
        while !bytes.is_empty() {
            if self.left > 0 {
                let len = self.left.min(bytes.len());
                self.left -= len;
                bytes = &bytes[len..];
            } else {
                let len = (FRAME_HEAD - self.read).min(bytes.len());
                self.head[self.read..self.read + len].copy_from_slice(&bytes[..len]);
                self.read += len;
                bytes = &bytes[len..];
                if self.read < FRAME_HEAD {
                    return;
                }
                let [a, b, c, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            if self.left == 0 && self.read == FRAME_HEAD {
                self.read = 0;
                if matches!(self.head[3], HEADERS | CONTINUATION) {
                    self.in_block = self.head[4] & END_HEADERS == 0;
                }
                self.ended |= !self.in_block;
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.preface == 0 && self.read == 0 && !self.in_block
    }

    /// Ready once what has begun has taken too long; to be asked when nothing more is there.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_whole() || self.ended {
            (self.deadline, self.ended) = (None, false);
        }
        if self.is_whole() {
            return Poll::Pending;
        }
        self.deadline.get_or_insert_with(|| Box::pin(sleep(HEAD))).as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Waker, time::Duration};

    use tokio::time::advance;

    use super::*;

    fn frame(kind: u8, flags: u8, len: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, len, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEAD + usize::from(len), 0);
        frame
    }

    #[test]
    fn frames_end_where_they_say_however_they_come() {
        let mut bytes = vec![b'P'; PREFACE];
        let mut ends = vec![PREFACE];
        for (kind, flags, len, ends_there) in [
            (4, 0, 0, true),
            (1, 5, 9, true),
            (0, 1, 200, true),
            (1, 1, 3, false),
            (9, 0, 0, false),
            (9, 4, 7, true),
            (6, 0, 8, true),
        ] {
            bytes.extend(frame(kind, flags, len));
            if ends_there {
                ends.push(bytes.len());
            }
        }
        for step in [1, 2, 7, 33] {
            let mut pace = Pace::new();
            let mut at = 0;
            for piece in bytes.chunks(step) {
                pace.see(piece);
                at += piece.len();
                assert_eq!(pace.is_whole(), ends.contains(&at), "{step} at a time, at {at}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_trickles_is_late_and_what_rests_is_not() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut pace = Pace::new();
        pace.see(&[b'P'; PREFACE]);
        pace.see(&frame(4, 0, 0));
        assert!(pace.poll_late(&mut cx).is_pending());
        advance(100 * HEAD).await;
        assert!(pace.poll_late(&mut cx).is_pending(), "a client at rest");
        // One header block after another, each of them in time.
        for _ in 0..5 {
            pace.see(&frame(1, 0, 1));
            assert!(pace.poll_late(&mut cx).is_pending());
            advance(HEAD / 2).await;
            pace.see(&[frame(9, 4, 1), frame(1, 0, 1)].concat());
            assert!(pace.poll_late(&mut cx).is_pending());
            advance(HEAD / 2).await;
            pace.see(&frame(9, 4, 1));
        }
        // One that never ends.
        pace.see(&frame(1, 0, 1));
        for _ in 0..5 {
            assert!(pace.poll_late(&mut cx).is_pending());
            advance(HEAD / 5).await;
            pace.see(&frame(9, 0, 1));
        }
        advance(Duration::from_millis(1)).await;
        assert!(pace.poll_late(&mut cx).is_ready());
    }
}
