//! Answers of the agent itself to requests that it does not pass on, as Istio's are.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, WWW_AUTHENTICATE},
    request::Parts,
};

use crate::jwt::BadToken;

/// What a client is told that policy refuses.
const DENIED: &str = "RBAC: access denied";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Not more of a provider's body is said in a gRPC message.
const GRPC_TEXT: usize = 1024;

/// A whole answer.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// Plain text.
    pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/plain"))]);
        Self { status, headers, body: text.into() }
    }

    /// Policy refuses the request with this head.
    pub(super) fn denied(head: &Parts) -> Self {
        if is_grpc(head) {
            return Self::grpc(7, DENIED.as_bytes());
        }
        Self::text(StatusCode::FORBIDDEN, DENIED)
    }

    /// Its token is not good.
    pub(super) fn of_token(bad: &BadToken, head: &Parts) -> Self {
        let mut answer = if is_grpc(head) {
            Self::grpc(bad.grpc_status(), bad.text.as_bytes())
        } else {
            Self::text(bad.status, bad.text)
        };
        answer.headers.insert(WWW_AUTHENTICATE, bad.challenge.clone());
        answer
    }

    /// An external provider refuses it so.
    pub(super) fn of_provider(
        status: StatusCode,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
        head: &Parts,
    ) -> Self {
        let mut answer = if is_grpc(head) {
            Self::grpc(grpc_status(status), &body[..body.len().min(GRPC_TEXT)])
        } else {
            Self { status, headers: HeaderMap::new(), body }
        };
        for (name, value) in headers {
            // Where it ends is said here.
            if ![CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION].contains(&name) {
                answer.headers.append(name, value);
            }
        }
        if !answer.body.is_empty() && !answer.headers.contains_key(CONTENT_TYPE) {
            answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        answer
    }

    /// Nothing but trailers, in the place of a head.
    fn grpc(status: u16, text: &[u8]) -> Self {
        let message = HeaderValue::try_from(percent_encoded(text));
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (GRPC_STATUS, HeaderValue::from(status)),
            (GRPC_MESSAGE, message.unwrap_or_else(|_| HeaderValue::from_static(DENIED))),
        ]);
        Self { status: StatusCode::OK, headers, body: Bytes::new() }
    }

    /// As HTTP/1 has it; the connection may have to end behind it.
    pub(super) fn to_http1(&self, is_head: bool, closes: bool) -> Vec<u8> {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut out = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        let length = HeaderValue::from(self.body.len());
        let close = closes.then(|| (CONNECTION, HeaderValue::from_static("close")));
        let added = std::iter::once((CONTENT_LENGTH, length)).chain(close);
        let own = self.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
        for (name, value) in own.chain(added) {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(piece);
            }
        }
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// Whether the client understands gRPC's answers.
pub(super) fn is_grpc(head: &Parts) -> bool {
    head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// As gRPC maps the status of a proxy to its own
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// As gRPC writes a message into a header field.
fn percent_encoded(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b'%' => out.push_str("%25"),
            0x20..0x7f => out.push(char::from(*byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(content_type: &str) -> Parts {
        http::Request::builder().header(CONTENT_TYPE, content_type).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_refusal_reads_as_istios() {
        let http = Answer::denied(&head("text/html"));
        assert_eq!(
            String::from_utf8(http.to_http1(false, false)).unwrap(),
            "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 19\r\n\r\nRBAC: access denied"
        );
        assert!(http.to_http1(true, true).ends_with(b"content-length: 19\r\nconnection: close\r\n\r\n"));
        let grpc = Answer::denied(&head("application/grpc+proto"));
        assert_eq!(grpc.status, StatusCode::OK);
        assert_eq!(
            (&grpc.headers["grpc-status"], &grpc.headers["grpc-message"]),
            (&HeaderValue::from(7), &HeaderValue::from_static(DENIED))
        );
        assert!(grpc.body.is_empty());
    }

    #[test]
    fn a_provider_cannot_say_where_its_answer_ends() {
        let headers = vec![
            (CONTENT_LENGTH, HeaderValue::from_static("9")),
            (HeaderName::from_static("location"), HeaderValue::from_static("/login")),
        ];
        let body = Bytes::from_static(b"n\xc3\xb6 %");
        let answer = Answer::of_provider(StatusCode::FOUND, headers.clone(), body.clone(), &head("a/b"));
        let text = String::from_utf8(answer.to_http1(false, false)).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nnö %"
        );
        let grpc = Answer::of_provider(StatusCode::UNAUTHORIZED, headers, body, &head("application/grpc"));
        assert_eq!(grpc.headers["grpc-status"], "16");
        assert_eq!(grpc.headers["grpc-message"], "n%C3%B6 %25");
    }
}
