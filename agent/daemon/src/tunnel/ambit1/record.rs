//! TLS 1.3 records (RFC 8446 §5), sealed and opened in place with the traffic keys that rustls negotiated.

use std::{fmt, io::IoSliceMut};

use ambit_core::frame::{self, FrameType};
use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::tunnel::{
    TunnelError,
    secret::{TrafficKeys, TrafficSecret},
};

/// Bytes of a record's header.
pub(super) const HEADER_LEN: usize = 5;
/// Bytes of plaintext that a record carries at most.
pub(super) const MAX_PLAINTEXT: usize = 1 << 14;
/// Bytes behind the plaintext: the content type, and the AEAD's tag.
pub(super) const TRAILER_LEN: usize = 1 + 16;
/// Bytes of a full record.
pub(in crate::tunnel) const RECORD_LEN: usize = HEADER_LEN + MAX_PLAINTEXT + TRAILER_LEN;
/// Records in a batch: one system call each way moves up to this many.
pub(in crate::tunnel) const RECORDS: usize = 8;
/// Bytes of a stream that a full record with one DATA frame carries.
const PAYLOAD_LEN: usize = MAX_PLAINTEXT - frame::HEADER_LEN;
/// The longest record that a peer may send: RFC 8446 §5.2 allows 256 bytes of expansion.
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// Records under one key before a key update, well below AES-GCM's limit of 2^24.5 (RFC 8446 §5.5).
pub(super) const REKEY_AFTER: u64 = if cfg!(test) { 64 } else { 1 << 23 };

/// The content type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ContentType {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// One direction's key and sequence number.
struct Keys {
    secret: TrafficSecret,
    iv: [u8; NONCE_LEN],
    /// The key with all that is computed from it, ten times as long as the secret: made for the next record where it is missing.
    expanded: Option<LessSafeKey>,
    sequence: u64,
}

impl Keys {
    fn new(sequence: u64, secret: TrafficSecret) -> Result<Self, TunnelError> {
        let keys = secret.keys()?;
        Ok(Self { secret, iv: *keys.iv(), expanded: Some(expanded(&keys)?), sequence })
    }

    /// Goes on under new keys (RFC 8446 §4.6.3).
    fn renew(&mut self) -> Result<(), TunnelError> {
        *self = Self::new(0, self.secret.next()?)?;
        Ok(())
    }

    /// The key, and the nonce of the next record (RFC 8446 §5.3).
    fn next(&mut self) -> Result<(&LessSafeKey, Nonce), TunnelError> {
        let mut nonce = self.iv;
        for (byte, mask) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= mask;
        }
        self.sequence += 1;
        let key = match &mut self.expanded {
            Some(key) => key,
            slot @ None => slot.insert(expanded(&self.secret.keys()?)?),
        };
        Ok((key, Nonce::assume_unique_for_key(nonce)))
    }
}

fn expanded(keys: &TrafficKeys) -> Result<LessSafeKey, TunnelError> {
    let key = UnboundKey::new(keys.cipher().aead(), keys.key());
    key.map(LessSafeKey::new).map_err(|_| TunnelError::Record)
}

/// Seals what is sent.
pub(super) struct Sealer(Keys);

impl Sealer {
    /// Record `sequence` is the next one.
    pub(super) fn new(sequence: u64, secret: TrafficSecret) -> Result<Self, TunnelError> {
        Keys::new(sequence, secret).map(Self)
    }

    /// Goes on under new keys.
    pub(super) fn renew(&mut self) -> Result<(), TunnelError> {
        self.0.renew()
    }

    /// Keeps no more than it needs while nothing is sent.
    pub(super) fn rest(&mut self) {
        self.0.expanded = None;
    }

    /// Records that have been sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.0.sequence
    }

    /// The number of the next record, and the secret behind what it is sealed with.
    pub(super) fn secret(&self) -> (u64, &TrafficSecret) {
        (self.0.sequence, &self.0.secret)
    }

    /// Seals the `len` bytes of plaintext that stand behind the room for a header in `record`; returns the record's
    /// length.
    pub(super) fn seal(
        &mut self,
        record: &mut [u8],
        len: usize,
        content: ContentType,
    ) -> Result<usize, TunnelError> {
        let total = HEADER_LEN + len + TRAILER_LEN;
        let (header, body) = record[..total].split_at_mut(HEADER_LEN);
        header.copy_from_slice(&record_header(len + TRAILER_LEN));
        let (plaintext, tag_room) = body.split_at_mut(len + 1);
        plaintext[len] = content as u8;
        let (key, nonce) = self.0.next()?;
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(&*header), plaintext)
            .map_err(|_| TunnelError::Record)?;
        tag_room.copy_from_slice(tag.as_ref());
        Ok(total)
    }
}

/// Opens what is received.
pub(super) struct Opener(Keys);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("sequence", &self.0.sequence).finish_non_exhaustive()
    }
}

impl Opener {
    /// Record `sequence` is the next one.
    pub(super) fn new(sequence: u64, secret: TrafficSecret) -> Result<Self, TunnelError> {
        Keys::new(sequence, secret).map(Self)
    }

    /// Goes on under new keys.
    pub(super) fn renew(&mut self) -> Result<(), TunnelError> {
        self.0.renew()
    }

    /// Keeps no more than it needs while nothing comes.
    pub(super) fn rest(&mut self) {
        self.0.expanded = None;
    }

    /// The number of the next record, and the secret behind what it is opened with.
    pub(super) fn secret(&self) -> (u64, &TrafficSecret) {
        (self.0.sequence, &self.0.secret)
    }

    /// Opens one whole record in place; returns its content type and the length of its plaintext, which stands right
    /// behind the header.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, usize), TunnelError> {
        let (header, body) = record.split_at_mut(HEADER_LEN);
        let (key, nonce) = self.0.next()?;
        let inner = key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| TunnelError::Record)?;
        // Zeros behind the content type are padding.
        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(TunnelError::Record)?;
        let content = match inner[end] {
            21 => ContentType::Alert,
            22 => ContentType::Handshake,
            23 => ContentType::Data,
            _ => return Err(TunnelError::Record),
        };
        if end > MAX_PLAINTEXT {
            return Err(TunnelError::Record);
        }
        Ok((content, end))
    }
}

/// The length of the record at the start of `bytes`, header included; `None` while the header is not there.
pub(super) fn record_len(bytes: &[u8]) -> Result<Option<usize>, TunnelError> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[0] != ContentType::Data as u8 || !(TRAILER_LEN..=MAX_CIPHERTEXT).contains(&len) {
        return Err(TunnelError::Record);
    }
    Ok(Some(HEADER_LEN + len))
}

/// A buffer laid out for DATA frames.
#[derive(Debug)]
pub(super) enum Batch<'a> {
    /// As records with one frame each, with gaps for all that is not payload.
    Records(&'a mut [u8]),
    /// As one frame, for a kernel that makes records of it; with room for FIN behind it.
    Frame(&'a mut [u8]),
}

impl Batch<'_> {
    /// Room for the first payload.
    pub(super) fn first(&mut self) -> &mut [u8] {
        match self {
            Self::Records(buffer) => &mut buffer[PAYLOAD_AT..PAYLOAD_AT + PAYLOAD_LEN],
            Self::Frame(buffer) => {
                let end = buffer.len() - frame::HEADER_LEN;
                &mut buffer[frame::HEADER_LEN..end]
            }
        }
    }

    /// Room for the payloads of the records behind the first; none of it in a small buffer.
    pub(super) fn rest(&mut self) -> [IoSliceMut<'_>; RECORDS - 1] {
        let behind = match self {
            Self::Records(buffer) => &mut buffer[RECORD_LEN..],
            Self::Frame(_) => &mut [],
        };
        let mut records = behind.chunks_exact_mut(RECORD_LEN);
        std::array::from_fn(|_| match records.next() {
            Some(record) => IoSliceMut::new(&mut record[PAYLOAD_AT..PAYLOAD_AT + PAYLOAD_LEN]),
            None => IoSliceMut::new(&mut []),
        })
    }

    /// Copies the front of `bytes`, as much as there is room for; answers how many that is.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.first().len());
        let (front, mut left) = bytes.split_at(len);
        self.first()[..len].copy_from_slice(front);
        if !left.is_empty() && self.goes_on_after(len) {
            for mut room in self.rest() {
                let (piece, more) = left.split_at(left.len().min(room.len()));
                room[..piece.len()].copy_from_slice(piece);
                left = more;
            }
        }
        bytes.len() - left.len()
    }

    /// Whether `len` bytes fill the first record and there is room for others.
    pub(super) fn goes_on_after(&self, len: usize) -> bool {
        matches!(self, Self::Records(buffer) if len == PAYLOAD_LEN && buffer.len() >= 2 * RECORD_LEN)
    }
}

const PAYLOAD_AT: usize = HEADER_LEN + frame::HEADER_LEN;

/// Seals the `len` bytes of payload that stand in `buffer` as [`Batch`] lays them out; returns how many bytes of
/// `buffer` are for the wire now.
pub(super) fn seal_batch(buffer: &mut [u8], sealer: &mut Sealer, len: usize) -> Result<usize, TunnelError> {
    let (mut left, mut wire) = (len, 0);
    for record in buffer.chunks_exact_mut(RECORD_LEN) {
        if left == 0 {
            break;
        }
        let payload = left.min(PAYLOAD_LEN);
        record[HEADER_LEN..PAYLOAD_AT].copy_from_slice(&frame::header(FrameType::Data, payload));
        wire += sealer.seal(record, frame::HEADER_LEN + payload, ContentType::Data)?;
        left -= payload;
    }
    Ok(wire)
}

fn record_header(len: usize) -> [u8; HEADER_LEN] {
    let [high, low] = (len as u16).to_be_bytes();
    [ContentType::Data as u8, 3, 3, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_rests_keeps_little_and_goes_on_with_the_same_key() {
        let (mut sealer, mut opener) = (
            Sealer::new(3, TrafficSecret::known()).unwrap(),
            Opener::new(3, TrafficSecret::known()).unwrap(),
        );
        for number in 0..6_u8 {
            let mut record = [0; HEADER_LEN + 1 + TRAILER_LEN];
            record[HEADER_LEN] = number;
            sealer.seal(&mut record, 1, ContentType::Data).unwrap();
            assert_eq!(opener.open(&mut record).unwrap(), (ContentType::Data, 1));
            assert_eq!(record[HEADER_LEN], number);
            assert!(sealer.0.expanded.is_some() && opener.0.expanded.is_some());
            if number % 2 == 0 {
                sealer.rest();
                opener.rest();
                assert!(sealer.0.expanded.is_none() && opener.0.expanded.is_none());
            }
        }
    }
}
