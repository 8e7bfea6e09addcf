//! What the DATA of a bundle consists of: small messages of many streams between the same two pods, one after another.
//!
//! A parcel is an 18-byte header, big-endian, and 1 to [`MAX`] bytes of its stream. A stream says what it has to say by parcels and by DATA on
//! a connection of its own, as it likes: a parcel says how much DATA comes before it, and MARK how many parcels come before DATA.

/// Bytes of a parcel's header.
pub const HEADER_LEN: usize = 4 + 4 + 8 + 2;
/// The longest message that is a parcel, in bytes.
pub const MAX: usize = 4096;
/// How many parcels of a stream may be on their way, or wait for their application, one way. What is more goes over the stream's own
/// connection, which waits for the application as TCP does.
pub const WINDOW: u32 = 2;

/// The header of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The stream's number, as its OPEN says.
    pub strand: u32,
    /// How many parcels of the other direction the application has got, modulo 2^32.
    pub taken: u32,
    /// How many bytes of DATA have gone this way over the stream's own connection, since its handshake, before this parcel.
    pub before: u64,
    /// Bytes of the stream.
    pub len: u16,
}

/// Why a bundle's bytes are no parcels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// A length that no parcel has.
    #[error("the peer sent a parcel of {0} bytes (1 to {MAX})")]
    Len(u16),
}

impl Head {
    /// As it stands in front of the bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let Self { strand, taken, before, len } = *self;
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&strand.to_be_bytes());
        bytes[4..8].copy_from_slice(&taken.to_be_bytes());
        bytes[8..16].copy_from_slice(&before.to_be_bytes());
        bytes[16..].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ParcelError> {
        let (words, long) = (&bytes[..8], &bytes[8..16]);
        let word = |at: usize| u32::from_be_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
        let before = long.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let len = u16::from_be_bytes([bytes[16], bytes[17]]);
        if len == 0 || usize::from(len) > MAX {
            return Err(ParcelError::Len(len));
        }
        Ok(Self { strand: word(0), taken: word(4), before, len })
    }
}

/// The first parcel in `input`, which is moved past it; `None` while it is not whole.
pub fn next<'a>(input: &mut &'a [u8]) -> Result<Option<(Head, &'a [u8])>, ParcelError> {
    let Some((header, behind)) = input.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
    let head = Head::decode(header)?;
    let Some((bytes, rest)) = behind.split_at_checked(usize::from(head.len)) else { return Ok(None) };
    *input = rest;
    Ok(Some((head, bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parcels_come_one_after_another_once_they_are_whole() {
        let heads = [
            Head { strand: 1, taken: u32::MAX, before: 0, len: 1 },
            Head { strand: u32::MAX, taken: 2, before: u64::MAX - 1, len: MAX as u16 },
        ];
        let mut wire = Vec::new();
        for head in &heads {
            wire.extend(head.encode());
            wire.extend(vec![head.strand as u8; usize::from(head.len)]);
        }
        let mut input = wire.as_slice();
        for head in heads {
            let (found, bytes) = next(&mut input).unwrap().unwrap();
            assert_eq!((found, bytes.len()), (head, usize::from(head.len)));
            assert!(bytes.iter().all(|byte| *byte == head.strand as u8));
        }
        assert!(input.is_empty());
        for cut in 0..HEADER_LEN + 1 {
            let mut input = &wire[..cut];
            assert_eq!(next(&mut input), Ok(None), "cut after {cut} bytes");
            assert_eq!(input.len(), cut);
        }
    }

    #[test]
    fn a_parcel_has_a_length_that_parcels_have() {
        for len in [0, MAX as u16 + 1, u16::MAX] {
            let wire =
                [Head { strand: 1, taken: 0, before: 0, len }.encode().as_slice(), &[0; 70_000]].concat();
            assert_eq!(next(&mut wire.as_slice()), Err(ParcelError::Len(len)));
        }
    }
}
