//! The codec of the tunnel protocol `ambit/1`, inside TLS and without I/O.
//!
//! A frame is a 4-byte header — type, then the payload's length in 24 bits, big-endian — and a payload. One stream at a
//! time runs on a connection: OPEN from the client, ACCEPT or DENY from the server, DATA both ways, one FIN each way.
//! After both FINs the next OPEN may follow. RESET ends the stream and the connection. PING carries nothing and has no
//! answer. GOAWAY, from the server, asks for no further OPEN; one that has crossed it is served. Small messages of many
//! streams may share one more connection, the bundle ([`parcel`]); MARK says where they belong. All input is hostile:
//! every length is bounded, and a frame out of place is an error.

pub mod parcel;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::reason::{Reason, Refusal};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 4;
/// The longest payload of any frame but DATA, in bytes.
pub const MAX_CONTROL: usize = 4096;
/// The longest payload of a DATA frame: what 24 bits can say.
pub const MAX_DATA: usize = (1 << 24) - 1;

const MAX_TEXT: usize = 1024;
/// What there is to say of a RESET that says no more than its reason.
const RESET: &str = "the other end reset the connection";

/// The first byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Client to server: begin a stream.
    Open = 1,
    /// Server to client: the application has been connected.
    Accept = 2,
    /// Server to client: the stream is refused, with the reason.
    Deny = 3,
    /// Either way: bytes of the stream.
    Data = 4,
    /// Either way: no more DATA in this direction (half-close).
    Fin = 5,
    /// Either way: the stream is cut, with the reason.
    Reset = 6,
    /// Either way: keeps the path open.
    Ping = 7,
    /// Server to client: no stream but those already begun will be taken on this connection.
    GoAway = 8,
    /// Either way: so many parcels of this stream, which have gone over the bundle, come before what follows here.
    Mark = 9,
}

impl FrameType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Deny,
            4 => Self::Data,
            5 => Self::Fin,
            6 => Self::Reset,
            7 => Self::Ping,
            8 => Self::GoAway,
            9 => Self::Mark,
            _ => return None,
        })
    }
}

/// The header of a frame with `len` bytes of payload (at most [`MAX_DATA`]).
pub fn header(frame: FrameType, len: usize) -> [u8; HEADER_LEN] {
    debug_assert!(len <= MAX_DATA, "a frame's length has 24 bits");
    let [_, a, b, c] = u32::try_from(len.min(MAX_DATA)).unwrap_or(0).to_be_bytes();
    [frame as u8, a, b, c]
}

/// The payload of OPEN. All of it is the client agent's word: good for logs and metrics, never for a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// What the application dialled.
    pub original_dst: SocketAddr,
    /// The service's host name, if a service was dialled; at most 1,024 bytes.
    pub service: Option<String>,
    /// W3C trace context (`traceparent`), if there is one.
    pub trace: Option<String>,
    /// The place of the connection among those of the same client to the same destination.
    pub order: Order,
    /// The application is not connected before the answer is here: it has nothing to say until then.
    pub waits: bool,
    /// Which strand of a bundle it may be, if any.
    pub strand: Option<Strand>,
}

/// A stream's name on the bundle beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strand {
    /// A random number that the client's agent has chosen. Bundles are told apart by that and by the two pods.
    pub bundle: u64,
    /// The stream's; 0 is the bundle itself, whose DATA is [`parcel`]s.
    pub number: u32,
}

/// Where a connection stands among others that were numbered in the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// A random number for the place and time of numbering.
    pub epoch: u64,
    /// 0, 1, 2, …
    pub number: u64,
}

/// The payload of MARK: numbers of parcels of the stream since its OPEN, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How many have gone this way.
    pub parcels: u32,
    /// How many of the other direction the application has got.
    pub taken: u32,
}

/// Bytes of a MARK frame.
pub const MARK_LEN: usize = HEADER_LEN + 4 + 4;

/// A frame with no stream bytes in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// See [`FrameType::Open`].
    Open(Open),
    /// See [`FrameType::Accept`].
    Accept {
        /// The server takes parcels of the stream from the bundle that OPEN names.
        bundles: bool,
    },
    /// See [`FrameType::Deny`].
    Deny(Refusal),
    /// See [`FrameType::Fin`].
    Fin,
    /// See [`FrameType::Reset`].
    Reset(Refusal),
    /// See [`FrameType::Ping`].
    Ping,
    /// See [`FrameType::GoAway`].
    GoAway,
    /// See [`FrameType::Mark`].
    Mark(Mark),
}

impl Control {
    /// The whole frame, header included. Texts beyond 1,024 bytes are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        let frame = match self {
            Self::Open(open) => {
                put_addr(&mut payload, open.original_dst);
                put_text(&mut payload, open.service.as_deref().unwrap_or(""));
                put_text(&mut payload, open.trace.as_deref().unwrap_or(""));
                payload.extend(open.order.epoch.to_be_bytes());
                payload.extend(open.order.number.to_be_bytes());
                payload.push(u8::from(open.waits));
                if let Some(Strand { bundle, number }) = open.strand {
                    payload.extend(bundle.to_be_bytes());
                    payload.extend(number.to_be_bytes());
                }
                FrameType::Open
            }
            Self::Accept { bundles } => {
                payload.extend(bundles.then_some(1));
                FrameType::Accept
            }
            Self::Deny(refusal) => {
                put_refusal(&mut payload, refusal);
                FrameType::Deny
            }
            Self::Fin => FrameType::Fin,
            Self::Reset(refusal) => {
                put_refusal(&mut payload, refusal);
                FrameType::Reset
            }
            Self::Ping => FrameType::Ping,
            Self::GoAway => FrameType::GoAway,
            Self::Mark(Mark { parcels, taken }) => {
                payload.extend(parcels.to_be_bytes());
                payload.extend(taken.to_be_bytes());
                FrameType::Mark
            }
        };
        let mut bytes = header(frame, payload.len()).to_vec();
        bytes.append(&mut payload);
        bytes
    }

    fn decode(frame: FrameType, payload: &[u8]) -> Result<Self, FrameError> {
        let mut input = Payload { frame, bytes: payload };
        Ok(match frame {
            FrameType::Open => Self::Open(Open {
                original_dst: input.addr()?,
                service: input.text()?,
                trace: input.text()?,
                order: Order {
                    epoch: u64::from_be_bytes(input.array()?),
                    number: u64::from_be_bytes(input.array()?),
                },
                // Agents before 0.2 end here.
                waits: !input.bytes.is_empty() && input.array()? != [0],
                strand: input.strand()?,
            }),
            FrameType::Accept => Self::Accept { bundles: payload.first() == Some(&1) },
            FrameType::Deny => {
                let reason = Reason::from_code(input.u16()?);
                Self::Deny(input.refusal(reason)?)
            }
            FrameType::Fin => Self::Fin,
            FrameType::Reset => {
                let reason = Reason::from_code(input.u16()?);
                // Agents before 0.2 end here.
                let bare = input.bytes.is_empty();
                Self::Reset(if bare { Refusal::new(reason, RESET) } else { input.refusal(reason)? })
            }
            FrameType::Ping => Self::Ping,
            FrameType::GoAway => Self::GoAway,
            FrameType::Mark => Self::Mark(Mark {
                parcels: u32::from_be_bytes(input.array()?),
                taken: u32::from_be_bytes(input.array()?),
            }),
            FrameType::Data => return Err(FrameError::Malformed(frame)),
        })
    }
}

/// What a piece of input turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Bytes of the stream; one DATA frame may come as several of these.
    Data(&'a [u8]),
    /// A whole frame of another type.
    Control(Control),
}

/// Why a peer's bytes are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte names no frame type.
    #[error("the peer sent a frame of unknown type {0}")]
    UnknownType(u8),
    /// A frame other than DATA is longer than [`MAX_CONTROL`].
    #[error("the peer sent a {0:?} frame of {1} bytes (at most {MAX_CONTROL})")]
    TooLong(FrameType, usize),
    /// The payload does not have the fields of its type.
    #[error("the peer sent a malformed {0:?} frame")]
    Malformed(FrameType),
}

/// Turns a peer's bytes into frames, however they are cut. Holds at most one control frame.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// Bytes of the current DATA frame still to come.
    data_left: usize,
    /// The control frame under way.
    control: Option<(FrameType, usize, Vec<u8>)>,
}

impl Decoder {
    /// The next event in `input`, which is moved past it; `None` once `input` is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            if self.data_left > 0 {
                if input.is_empty() {
                    return Ok(None);
                }
                let (data, rest) = input.split_at(self.data_left.min(input.len()));
                *input = rest;
                self.data_left -= data.len();
                return Ok(Some(Event::Data(data)));
            }
            if let Some((frame, len, payload)) = &mut self.control {
                let (part, rest) = input.split_at((*len - payload.len()).min(input.len()));
                payload.extend_from_slice(part);
                *input = rest;
                if payload.len() < *len {
                    return Ok(None);
                }
                let control = Control::decode(*frame, payload)?;
                self.control = None;
                return Ok(Some(Event::Control(control)));
            }
            let (part, rest) = input.split_at((HEADER_LEN - self.header_len).min(input.len()));
            self.header[self.header_len..self.header_len + part.len()].copy_from_slice(part);
            self.header_len += part.len();
            *input = rest;
            if self.header_len < HEADER_LEN {
                return Ok(None);
            }
            self.header_len = 0;
            self.begin()?;
        }
    }

    /// Whether no frame is cut in the middle.
    pub fn between_frames(&self) -> bool {
        self.header_len == 0 && self.data_left == 0 && self.control.is_none()
    }

    fn begin(&mut self) -> Result<(), FrameError> {
        let [frame, a, b, c] = self.header;
        let frame = FrameType::from_byte(frame).ok_or(FrameError::UnknownType(frame))?;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        if frame == FrameType::Data {
            self.data_left = len;
        } else if len > MAX_CONTROL {
            return Err(FrameError::TooLong(frame, len));
        } else {
            self.control = Some((frame, len, Vec::new()));
        }
        Ok(())
    }
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(addr.port().to_be_bytes());
}

fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    out.extend(refusal.reason.code().to_be_bytes());
    put_text(out, refusal.policy.as_deref().unwrap_or(""));
    put_text(out, &refusal.text);
    put_text(out, refusal.rule.as_deref().unwrap_or(""));
    put_text(out, refusal.field.as_deref().unwrap_or(""));
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text[..text.floor_char_boundary(MAX_TEXT)];
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

/// Reads a payload front to back. Bytes behind the known fields are left for later versions.
struct Payload<'a> {
    frame: FrameType,
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (part, rest) = self.bytes.split_at_checked(len).ok_or(FrameError::Malformed(self.frame))?;
        self.bytes = rest;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let malformed = FrameError::Malformed(self.frame);
        self.take(N)?.try_into().map_err(|_| malformed)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn addr(&mut self) -> Result<SocketAddr, FrameError> {
        let ip = match self.array()? {
            [4] => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            [6] => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(FrameError::Malformed(self.frame)),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// What follows the reason.
    fn refusal(&mut self, reason: Reason) -> Result<Refusal, FrameError> {
        Ok(Refusal {
            reason,
            policy: self.text()?.map(Arc::from),
            text: self.text()?.unwrap_or_default().into(),
            // Agents before 0.2 end before one of these.
            rule: self.last_text()?,
            field: self.last_text()?,
        })
    }

    /// None where agents do not bundle.
    fn strand(&mut self) -> Result<Option<Strand>, FrameError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let bundle = u64::from_be_bytes(self.array()?);
        Ok(Some(Strand { bundle, number: u32::from_be_bytes(self.array()?) }))
    }

    /// A text that older agents do not send.
    fn last_text(&mut self) -> Result<Option<Arc<str>>, FrameError> {
        Ok(if self.bytes.is_empty() { None } else { self.text()?.map(Arc::from) })
    }

    fn text(&mut self) -> Result<Option<String>, FrameError> {
        let malformed = FrameError::Malformed(self.frame);
        let len = usize::from(self.u16()?);
        if len > MAX_TEXT {
            return Err(malformed);
        }
        let text = str::from_utf8(self.take(len)?).map_err(|_| malformed)?;
        // Texts go into logs: a peer must not write lines of its own there.
        if text.chars().any(char::is_control) {
            return Err(malformed);
        }
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }
}

#[cfg(test)]
mod tests;
