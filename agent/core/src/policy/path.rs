//! Paths of requests: how they are normalised, and the templates that policies match them by.
//!
//! Promises that a normalised path stays as it is when it is normalised again, also by whoever decodes it once: what a verdict is taken
//! over is what is forwarded. Both cost time in proportion to the path's length.

mod template;

use std::borrow::Cow;

pub(super) use self::template::Template;
pub use crate::model::PathNormalization;

/// What a request asks for, as it is judged and forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path, normalised.
    pub path: Cow<'a, str>,
    /// What stands behind `?`, as it was sent.
    pub query: Option<&'a str>,
}

/// A path that nobody may forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It holds an encoded NUL, at which some would end it.
    #[error("the path holds %00")]
    Nul,
    /// It does not begin with a slash.
    #[error("the path does not begin with a slash")]
    Relative,
}

/// Path and query as they were sent, normalised; the fragment, which no client should send, is cut off. `*`, which OPTIONS asks for
/// (RFC 9112, section 3.2.4), and an empty path stay what they are.
pub fn normalize(mode: PathNormalization, sent: &str) -> Result<Target<'_>, BadPath> {
    let sent = sent.split_once('#').map_or(sent, |(before, _)| before);
    let (path, query) = match sent.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (sent, None),
    };
    let path = match path {
        "" | "*" => Cow::Borrowed(path),
        _ if mode == PathNormalization::None => Cow::Borrowed(path),
        _ => normal_path(mode, path)?,
    };
    Ok(Target { path, query })
}

fn normal_path(mode: PathNormalization, path: &str) -> Result<Cow<'_, str>, BadPath> {
    let merges = matches!(mode, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes);
    if is_normal(path, merges) {
        return Ok(Cow::Borrowed(path));
    }
    let path = decoded(path, mode == PathNormalization::DecodeAndMergeSlashes)?;
    if !path.starts_with('/') {
        return Err(BadPath::Relative);
    }
    let mut path = without_dot_segments(&path);
    if merges {
        let mut before = None;
        path.retain(|c| before.replace(c) != Some('/') || c != '/');
    }
    Ok(Cow::Owned(path))
}

/// Whether there is clearly nothing to do, as with nearly every path.
fn is_normal(path: &str, merges: bool) -> bool {
    let bytes = path.as_bytes();
    let plain = bytes.iter().all(|byte| !matches!(byte, b'%' | b'\\'));
    let after_slash = |next: u8| bytes.windows(2).any(|pair| pair == [b'/', next]);
    plain && bytes.first() == Some(&b'/') && !after_slash(b'.') && !(merges && after_slash(b'/'))
}

/// Decodes what may be decoded, again where that completes another escape: `%%361` is `a`, as whoever decodes `%61` would have it.
fn decoded(path: &str, slashes: bool) -> Result<String, BadPath> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for byte in path.bytes() {
        out.push(if byte == b'\\' { b'/' } else { byte });
        while let [.., b'%', high, low] = out[..] {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let Some((high, low)) = digit(high).zip(digit(low)) else { break };
            let meant = match (high * 16 + low) as u8 {
                0 => return Err(BadPath::Nul),
                b'/' | b'\\' if slashes => b'/',
                byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => byte,
                _ => break,
            };
            out.truncate(out.len() - 3);
            out.push(meant);
        }
    }
    // Bytes are only taken out between ASCII characters.
    Ok(String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// As RFC 3986 has it, section 5.2.4.
fn without_dot_segments(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        if last {
            out.push('/');
        }
    }
    out
}

#[cfg(test)]
mod slowly;
#[cfg(test)]
mod tests;
