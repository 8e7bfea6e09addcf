//! Where the body of an HTTP/1 message ends (RFC 9112, sections 6 and 7). Reads nothing into it: what is found good goes on byte
//! for byte, and what could be read in two ways is an error.

use std::borrow::Cow;

use http::StatusCode;

/// The longest line with the size of a chunk, its extensions included.
const SIZE_LINE: usize = 256;
/// Digits of a chunk's size: as many as cannot overflow.
const SIZE_DIGITS: usize = 15;
/// The longest trailer section.
const TRAILERS: usize = 8 * 1024;
/// The most fields of it.
const TRAILER_FIELDS: usize = 32;

/// A message that could be read in several ways, or in none, or that takes more than it may: why, and how it is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Malformed {
    pub(super) status: StatusCode,
    why: Cow<'static, str>,
}

impl Malformed {
    pub(super) const fn new(why: &'static str) -> Self {
        Self::answered(StatusCode::BAD_REQUEST, why)
    }

    pub(super) const fn answered(status: StatusCode, why: &'static str) -> Self {
        Self { status, why: Cow::Borrowed(why) }
    }

    pub(super) fn told(why: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, why: why.into() }
    }
}

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All that comes until the connection's end.
    UntilEnd,
}

/// Where in a chunked body it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// At the line with a size.
    Size,
    /// Within data, so many bytes before its end.
    Data(u64),
    /// Behind data.
    DataEnd,
    /// Behind the last chunk.
    Trailers,
    /// Nothing follows.
    Done,
}

impl Body {
    /// None at all.
    pub(super) const EMPTY: Self = Self::Length(0);
    /// In chunks, from its beginning.
    pub(super) const CHUNKED: Self = Self::Chunked(Chunk::Size);

    /// Whether nothing follows.
    pub(super) fn is_done(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// Reads what is in the body of which `bytes` are the beginning into `content`; answers whether that is all of it.
    pub(super) fn content(mut self, bytes: &[u8], content: &mut Vec<u8>) -> Result<bool, Malformed> {
        let mut at = 0;
        while !self.is_done() {
            let is_data =
                !matches!(self, Self::Chunked(Chunk::Size | Chunk::DataEnd | Chunk::Trailers | Chunk::Done));
            let step = match &mut self {
                Self::Chunked(chunk) => chunk.step(&bytes[at..])?.unwrap_or(0),
                _ => self.advance(&bytes[at..])?,
            };
            if step == 0 {
                break;
            }
            if is_data {
                content.extend_from_slice(&bytes[at..at + step]);
            }
            at += step;
        }
        Ok(self.is_done())
    }

    /// How many of `bytes`, which follow what has gone on before, belong to it; they count as gone. Of a line that is not whole,
    /// none.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::UntilEnd => Ok(bytes.len()),
            Self::Length(left) => Ok(take(left, bytes)),
            Self::Chunked(chunk) => {
                let mut gone = 0;
                while let Some(step) = chunk.step(&bytes[gone..])? {
                    gone += step;
                }
                Ok(gone)
            }
        }
    }
}

/// How much of `bytes` is within what is `left`, which becomes less by that.
fn take(left: &mut u64, bytes: &[u8]) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= taken as u64;
    taken
}

impl Chunk {
    /// One step on; `None` where that needs more bytes, or it is done.
    fn step(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        if bytes.is_empty() {
            return Ok(None);
        }
        match self {
            Self::Size => {
                let Some(line) = line(bytes, SIZE_LINE, "the line with the size of a chunk is too long")?
                else {
                    return Ok(None);
                };
                *self = match size(line)? {
                    0 => Self::Trailers,
                    size => Self::Data(size),
                };
                Ok(Some(line.len() + 2))
            }
            Self::Data(left) => {
                let taken = take(left, bytes);
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                Ok(Some(taken))
            }
            Self::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    *self = Self::Size;
                    Ok(Some(2))
                }
                [b'\r'] => Ok(None),
                _ => Err(Malformed::new("a chunk is longer than its size says")),
            },
            Self::Trailers => {
                let len = trailers(bytes)?;
                if len.is_some() {
                    *self = Self::Done;
                }
                Ok(len)
            }
            Self::Done => Ok(None),
        }
    }
}

/// The line at the front of `bytes`, without its CRLF; `None` while it is not whole.
fn line<'a>(bytes: &'a [u8], longest: usize, too_long: &'static str) -> Result<Option<&'a [u8]>, Malformed> {
    let shown = &bytes[..bytes.len().min(longest)];
    let Some(end) = shown.iter().position(|byte| *byte == b'\n') else {
        return if shown.len() < longest { Ok(None) } else { Err(Malformed::new(too_long)) };
    };
    match shown[..end].split_last() {
        Some((b'\r', line)) => Ok(Some(line)),
        _ => Err(Malformed::new("a line ends in LF without CR")),
    }
}

/// The size that a line states.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    if !(1..=SIZE_DIGITS).contains(&digits) {
        return Err(Malformed::new("the size of a chunk is not a number"));
    }
    // Extensions mean something to nobody, but where they end is for each to say who reads them leniently.
    let is_extension =
        rest.first() == Some(&b';') && rest.iter().all(|byte| matches!(byte, b'\t' | 0x20..0x7f));
    if !rest.is_empty() && !is_extension {
        return Err(Malformed::new("the size of a chunk is followed by something else"));
    }
    Ok(number.iter().fold(0, |sum, digit| sum * 16 + u64::from(hex(*digit))))
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

/// The length of the trailer section with the empty line at its end; `None` while it is not whole.
fn trailers(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    loop {
        let too_long = "the trailer section is too long";
        if at > TRAILERS {
            return Err(Malformed::new(too_long));
        }
        match line(&bytes[at..], TRAILERS - at + 2, too_long)? {
            None => return Ok(None),
            Some([]) => break,
            Some(line) => at += line.len() + 2,
        }
    }
    let whole = &bytes[..at + 2];
    let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
    let parsed = httparse::parse_headers(whole, &mut fields);
    let Ok(httparse::Status::Complete((_, fields))) = parsed else {
        return Err(Malformed::new("a field of the trailer section is malformed"));
    };
    // Who puts them among the header fields would read another message (RFC 9110, section 6.5.1).
    const DECIDING: [&str; 9] = [
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let decides = |name: &str| DECIDING.iter().any(|deciding| name.eq_ignore_ascii_case(deciding));
    if let Some(field) = fields.iter().find(|field| decides(field.name)) {
        return Err(Malformed::told(format!("the field {} may not be in a trailer section", field.name)));
    }
    Ok(Some(whole.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much of it goes on, given it piece by piece of `step` bytes, and whether it is done then.
    fn read(bytes: &[u8], step: usize) -> Result<(usize, bool), Malformed> {
        let mut body = Body::CHUNKED;
        let (mut gone, mut end) = (0, 0);
        while end < bytes.len() && !body.is_done() {
            end = (end + step).min(bytes.len());
            gone += body.advance(&bytes[gone..end])?;
        }
        Ok((gone, body.is_done()))
    }

    #[test]
    fn chunks_end_where_they_say_however_they_come() {
        for (text, whole) in [
            ("0\r\n\r\n", 5),
            ("5\r\nhello\r\n0\r\n\r\nGET ", 15),
            ("A\r\n0123456789\r\n000\r\n\r\n", 22),
            ("1;a=b;c=\"d e\"\r\nx\r\n0\r\n\r\n", 23),
            ("0\r\nGrpc-Status: 0\r\nx:\r\n\r\nrest", 25),
        ] {
            for step in [1, 2, 3, 7, 100] {
                assert_eq!(read(text.as_bytes(), step), Ok((whole, true)), "{text:?} by {step}");
            }
        }
        assert_eq!(read(b"ffffffffffffff\r\nabc", 100), Ok((19, false)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            "5\nhello\r\n0\r\n\r\n",
            "\r\n",
            "5 \r\nhello\r\n",
            " 5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "0x5\r\nhello\r\n",
            "-1\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5;a\nb\r\nhello",
            "5;a\rb\r\nhello",
            "5\x0b\r\nhello",
            "ffffffffffffffff\r\n",
            "10000000000000005\r\nhello\r\n",
            "0\r\nx : y\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\ntransfer-encoding: chunked\r\n\r\n",
            "0\r\nnocolon\r\n\r\n",
            "0\r\nx: y\n\r\n",
        ] {
            for step in [1, 100] {
                assert!(read(text.as_bytes(), step).is_err(), "{text:?} by {step}");
            }
        }
        assert!(read(&[b'0'; 300], 300).is_err(), "a size line without end");
        let long = format!("0\r\nx: {}", "y".repeat(9000));
        assert!(read(long.as_bytes(), 100).is_err(), "trailers without end");
    }
}
