//! Heads of HTTP/1 messages (RFC 9112), read by httparse and then strictly: a request that two servers could read differently is
//! malformed. Answers come from the application and are only looked at for where they end.

use std::{borrow::Cow, mem::MaybeUninit};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
};

use super::body::{Body, Malformed};

/// The most fields of a head.
const FIELDS: usize = 128;
/// What `HTTP2-Settings` is for: an upgrade that is not passed on (RFC 7540, section 3.2).
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The head of a request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) parts: Parts,
    /// Its bytes, the empty line included.
    pub(super) len: usize,
    pub(super) body: Body,
    /// The client waits for an interim answer before it sends the body.
    pub(super) expects_continue: bool,
    /// `parts` are not what stands in these bytes any more.
    pub(super) changed: bool,
}

/// Where the head at the front of `bytes` ends; `None` while it is not whole. `seen` bytes have been looked at before.
pub(super) fn end(bytes: &[u8], seen: &mut usize) -> Result<Option<usize>, Malformed> {
    let mut from = *seen;
    while let Some(lf) = bytes[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at) {
        if lf == 0 || bytes[lf - 1] != b'\r' {
            return Err(Malformed::new("a line ends in LF without CR"));
        }
        if bytes[..lf].ends_with(b"\r\n\r") {
            return Ok(Some(lf + 1));
        }
        from = lf + 1;
    }
    *seen = bytes.len();
    Ok(None)
}

/// Reads a request's whole head.
pub(super) fn request(head: &[u8]) -> Result<Request, Malformed> {
    // What is kept of it are parts of one copy.
    let shared = Bytes::copy_from_slice(head);
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(&shared, &mut fields) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Ok(_) => return Err(Malformed::new("the head is not one message's")),
        Err(httparse::Error::TooManyHeaders) => {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Malformed::answered(status, "the head has more than 128 fields"));
        }
        Err(error) => return Err(Malformed::told(format!("the head cannot be read: {error}"))),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Malformed::new("the request line is not whole"));
    };
    let mut parts = http::Request::new(()).into_parts().0;
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::new("no such method"))?;
    parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    parts.uri = uri(&shared.slice_ref(target.as_bytes()), &parts.method)?;
    parts.headers = HeaderMap::with_capacity(parsed.headers.len() + 2);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| Malformed::new("a field's name is malformed"))?;
        let value = HeaderValue::from_maybe_shared(shared.slice_ref(field.value));
        parts.headers.append(name, value.map_err(|_| Malformed::new("a field's value is malformed"))?);
    }
    let body = body(&parts)?;
    check_host(&parts)?;
    let changed = target.len() != target_len(&parts.uri);
    let mut request = Request { len: head.len(), body, expects_continue: false, changed, parts };
    request.connection_options()?;
    let expected = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    request.expects_continue = request.parts.headers.get(EXPECT).is_some_and(expected) && !body.is_done();
    Ok(request)
}

/// The request target in one of its four forms (RFC 9112, section 3.2). A fragment is no part of it and goes.
fn uri(target: &Bytes, method: &Method) -> Result<Uri, Malformed> {
    let uri = Uri::from_maybe_shared(target.clone());
    let uri = uri.map_err(|_| Malformed::new("the request target is malformed"))?;
    let (scheme, authority) = (uri.scheme_str(), uri.authority());
    let form_is_right = match (method == Method::CONNECT, scheme) {
        (true, None) => authority.is_some() && uri.path_and_query().is_none(),
        (false, None) => target.starts_with(b"/") || (&target[..] == b"*" && method == Method::OPTIONS),
        (false, Some("http" | "https")) => authority.is_some(),
        _ => false,
    };
    if !form_is_right || authority.is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(Malformed::new("the request target has a form that it may not have"));
    }
    Ok(uri)
}

/// How long a target is when it is written.
fn target_len(uri: &Uri) -> usize {
    match uri.scheme() {
        None => uri.path_and_query().map_or_else(
            || uri.authority().map_or(0, |authority| authority.as_str().len()),
            |path| path.as_str().len(),
        ),
        Some(_) => uri.to_string().len(),
    }
}

/// How the body is delimited. Nothing but one decimal length or chunks, and not both, is the same to everybody.
fn body(parts: &Parts) -> Result<Body, Malformed> {
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() {
        return Err(Malformed::new("there are several Content-Length fields"));
    }
    if codings.next().is_some() {
        return Err(Malformed::new("there are several Transfer-Encoding fields"));
    }
    match (length, coding) {
        (None, None) => Ok(Body::EMPTY),
        (Some(_), Some(_)) => {
            Err(Malformed::new("there are both a Content-Length and a Transfer-Encoding field"))
        }
        (Some(length), None) => {
            let digits = length.as_bytes();
            let is_number = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
            let length = length.to_str().ok().filter(|_| is_number).and_then(|length| length.parse().ok());
            length.map(Body::Length).ok_or(Malformed::new("the Content-Length is not a number"))
        }
        (None, Some(coding)) => {
            if parts.version == Version::HTTP_10 {
                return Err(Malformed::new("there is a Transfer-Encoding field in HTTP/1.0"));
            }
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            let unknown = Malformed::new("the Transfer-Encoding is not chunked");
            if chunked { Ok(Body::CHUNKED) } else { Err(unknown) }
        }
    }
}

/// There is one host, and it is the target's.
fn check_host(parts: &Parts) -> Result<(), Malformed> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed::new("there are several Host fields"));
    }
    let Some(host) = host else {
        let is_old = parts.version == Version::HTTP_10;
        return if is_old { Ok(()) } else { Err(Malformed::new("there is no Host field")) };
    };
    let is_host = |byte: &u8| matches!(byte, b'!' | b'$' | b'%'..=b'.' | b'0'..=b';' | b'=' | b'A'..=b'[' | b']' | b'_' | b'a'..=b'z' | b'~');
    if !host.as_bytes().iter().all(is_host) {
        return Err(Malformed::new("the Host field is malformed"));
    }
    match parts.uri.authority() {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(Malformed::new("the Host field is not the request target's host"))
        }
        _ => Ok(()),
    }
}

impl Request {
    /// Who takes fields away that the connection's options name would read another message: those are only what everybody knows to
    /// be the connection's. Nothing is upgraded to what would carry more requests, which nobody could judge.
    fn connection_options(&mut self) -> Result<(), Malformed> {
        let headers = &mut self.parts.headers;
        for value in headers.get_all(CONNECTION) {
            for option in list(value) {
                let known = ["close", "keep-alive", "upgrade", "te", "trailer", "http2-settings"];
                let is_known = known.iter().any(|known| option.eq_ignore_ascii_case(known.as_bytes()));
                let name = HeaderName::from_bytes(option);
                if !is_known && name.is_ok_and(|name| headers.contains_key(name)) {
                    return Err(Malformed::new(
                        "the Connection field names a field that is not the connection's",
                    ));
                }
            }
        }
        let carries_requests = |protocol: &[u8]| {
            let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
            ["h2c", "h2", "http", "tls"].iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        if !headers.get_all(UPGRADE).iter().flat_map(list).any(carries_requests) {
            return Ok(());
        }
        headers.remove(UPGRADE);
        headers.remove(HTTP2_SETTINGS);
        let stay = |option: &&[u8]| {
            !["upgrade", "http2-settings"].iter().any(|gone| option.eq_ignore_ascii_case(gone.as_bytes()))
        };
        let options: Vec<&[u8]> = headers.get_all(CONNECTION).iter().flat_map(list).filter(stay).collect();
        let options = HeaderValue::from_bytes(&options.join(&b", "[..]));
        headers.remove(CONNECTION);
        if let Ok(options) = options
            && !options.is_empty()
        {
            headers.insert(CONNECTION, options);
        }
        self.changed = true;
        Ok(())
    }

    /// Whether the application may answer with another protocol.
    pub(super) fn may_upgrade(&self) -> bool {
        self.parts.headers.contains_key(UPGRADE)
    }

    /// The head as it goes on where it is not `raw`, as which it came: what has not changed keeps its order and letters.
    pub(super) fn rewritten(&self, raw: &[u8]) -> Vec<u8> {
        let Parts { method, uri, version, headers, .. } = &self.parts;
        let target = match (uri.scheme(), uri.path_and_query()) {
            (None, Some(path)) => Cow::Borrowed(path.as_str()),
            _ => Cow::Owned(uri.to_string()),
        };
        let version = if *version == Version::HTTP_10 { "1.0" } else { "1.1" };
        let line = format!("{method} {target} HTTP/{version}\r\n");
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        // It has been read before.
        let _ = parsed.parse_with_uninit_headers(raw, &mut fields);
        written(line.into_bytes(), parsed.headers, headers)
    }
}

/// `line`, and behind it the fields as they came in `raw`, with the values that are in `headers`.
fn written(mut line: Vec<u8>, raw: &[httparse::Header<'_>], headers: &HeaderMap) -> Vec<u8> {
    let mut field = |name: &str, value: &[u8]| {
        for piece in [name.as_bytes(), b": ", value, b"\r\n"] {
            line.extend_from_slice(piece);
        }
    };
    for (at, came) in raw.iter().enumerate() {
        let same = |other: &&httparse::Header<'_>| other.name.eq_ignore_ascii_case(came.name);
        let before = raw[..at].iter().filter(same).count();
        let mut values = headers.get_all(came.name).iter();
        if let Some(value) = values.nth(before) {
            field(came.name, value.as_bytes());
        }
        if raw[at + 1..].iter().any(|other| same(&other)) {
            continue;
        }
        for value in values {
            field(came.name, value.as_bytes());
        }
    }
    for name in headers.keys() {
        if !raw.iter().any(|came| came.name.eq_ignore_ascii_case(name.as_str())) {
            for value in headers.get_all(name) {
                field(name.as_str(), value.as_bytes());
            }
        }
    }
    line.extend_from_slice(b"\r\n");
    line
}

/// The elements of a list, without the blanks around them.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Its bytes.
    pub(super) len: usize,
    pub(super) body: Body,
}

/// Reads the head of the answer to a request with `method` at the front of `bytes`; `None` while it is not whole.
pub(super) fn answer(bytes: &[u8], method: &Method) -> Result<Option<Answer>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = parse_answer(&mut parsed, bytes, &mut fields);
    let httparse::Status::Complete(len) = status.map_err(|_| Malformed::new("the answer is malformed"))?
    else {
        return Ok(None);
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Malformed::new("the answer has no status"))?;
    let body = if status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        || method == Method::HEAD
    {
        Body::EMPTY
    } else {
        answer_body(parsed.headers)
    };
    Ok(Some(Answer { status, len, body }))
}

fn parse_answer<'h, 'b>(
    parsed: &mut httparse::Response<'h, 'b>,
    bytes: &'b [u8],
    fields: &'h mut [MaybeUninit<httparse::Header<'b>>],
) -> httparse::Result<usize> {
    // As clients read them.
    httparse::ParserConfig::default()
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .parse_response_with_uninit_headers(parsed, bytes, fields)
}

/// Where lengths contradict each other only the end of the connection is sure.
fn answer_body(fields: &[httparse::Header<'_>]) -> Body {
    let values = |name: &'static str| {
        let named = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    };
    if let Some(coding) = values("transfer-encoding").next_back() {
        let last = coding.rsplit(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
        return if last.eq_ignore_ascii_case(b"chunked") { Body::CHUNKED } else { Body::UntilEnd };
    }
    let mut lengths = values("content-length");
    let Some(length) = lengths.next() else { return Body::UntilEnd };
    let number = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
    match number {
        Some(number) if lengths.all(|other| other == length) => Body::Length(number),
        _ => Body::UntilEnd,
    }
}

/// The fields of an answer's whole head.
pub(super) fn answer_fields(head: &[u8]) -> HeaderMap {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let _ = parse_answer(&mut parsed, head, &mut fields);
    let named = parsed.headers.iter().filter_map(|field| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    });
    named.collect()
}

/// An answer's whole head with the fields that are in `headers`.
pub(super) fn answer_rewritten(head: &[u8], headers: &HeaderMap) -> Vec<u8> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let _ = parse_answer(&mut parsed, head, &mut fields);
    let line = head.iter().position(|byte| *byte == b'\n').map_or(0, |lf| lf + 1);
    written(head[..line].to_vec(), parsed.headers, headers)
}

#[cfg(test)]
mod tests;
