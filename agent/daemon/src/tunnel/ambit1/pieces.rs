//! Where bytes of a stream stand in the buffer that they were received in.

use std::ops::Range;

/// Pieces of stream data that one batch of records may come in.
pub(super) const PIECES: usize = 16;

/// Where bytes of the stream stand that have not been delivered. They take little room: offsets in a buffer are small.
#[derive(Default)]
pub(super) struct Pieces {
    ranges: [(u32, u32); PIECES],
    first: u8,
    len: u8,
}

impl Pieces {
    pub(super) fn is_empty(&self) -> bool {
        self.first == self.len
    }

    pub(super) fn is_full(&self) -> bool {
        usize::from(self.len) == PIECES
    }

    pub(super) fn clear(&mut self) {
        (self.first, self.len) = (0, 0);
    }

    pub(super) fn push(&mut self, range: &Range<usize>) {
        // A buffer is far shorter than 4 GiB.
        self.ranges[usize::from(self.len)] = (range.start as u32, range.end as u32);
        self.len += 1;
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        let ranges = &self.ranges[usize::from(self.first)..usize::from(self.len)];
        ranges.iter().map(|(start, end)| *start as usize..*end as usize)
    }

    pub(super) fn advance(&mut self, mut by: usize) {
        while by > 0 && !self.is_empty() {
            let (start, end) = &mut self.ranges[usize::from(self.first)];
            let step = by.min((*end - *start) as usize);
            *start += step as u32;
            by -= step;
            if start == end {
                self.first += 1;
            }
        }
    }
}
