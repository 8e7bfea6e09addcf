//! The bearer token that an agent shows to the certificate service, and whose it says to be.

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;
use tonic::metadata::AsciiMetadataValue;
use zeroize::Zeroizing;

use super::read_file;
use crate::identity::IssueError;

/// No token is longer.
const MAX_TOKEN: u64 = 64 * 1024;

/// A token, read anew for every call.
pub(super) struct Token {
    /// The value of the `authorization` header, marked so that it is never printed.
    pub(super) header: AsciiMetadataValue,
    /// `NAMESPACE/NAME` of the service account, for the text of errors: nothing here has verified it.
    pub(super) account: Option<String>,
}

impl Token {
    pub(super) fn read(path: &Path) -> Result<Self, IssueError> {
        let content = read_file(path, MAX_TOKEN)?;
        let unusable = || IssueError::Unreachable(format!("{} holds no bearer token", path.display()));
        let text = std::str::from_utf8(&content).map_err(|_| unusable())?.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unusable());
        }
        let value = Zeroizing::new(format!("Bearer {text}"));
        let mut header = AsciiMetadataValue::try_from(value.as_str()).map_err(|_| unusable())?;
        header.set_sensitive(true);
        Ok(Self { header, account: account(text) })
    }
}

/// Whose token it is, if it is one of a Kubernetes service account (RFC 7519; Kubernetes' documentation on service account tokens).
fn account(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let payload = token.split('.').nth(1)?;
    let claims = BASE64URL_NOPAD.decode(payload.trim_end_matches('=').as_bytes()).ok()?;
    let Claims { sub } = serde_json::from_slice(&claims).ok()?;
    let (namespace, name) = sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let is_name = |text: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        !text.is_empty() && text.len() <= 253 && text.chars().all(fits)
    };
    (is_name(namespace) && is_name(name)).then(|| format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_is_read_from_a_token_and_from_nothing_else() {
        let token = |payload: &str| format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes()));
        for (text, expected) in [
            (
                token(r#"{"sub":"system:serviceaccount:ambit-system:ambit","aud":["istio-ca"]}"#),
                Some("ambit-system/ambit"),
            ),
            (token(r#"{"sub":"somebody"}"#), None),
            (token(r#"{"sub":"system:serviceaccount:a:b\nc"}"#), None),
            (token("no JSON"), None),
            ("opaque".to_owned(), None),
        ] {
            assert_eq!(account(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_token_is_one_line_of_bounded_length_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "abc.def-123\n").unwrap();
        let header = Token::read(&path).unwrap().header;
        assert_eq!(header.to_str().unwrap(), "Bearer abc.def-123");
        assert!(!format!("{header:?}").contains("abc"));
        for bad in ["", "\n", "two words", "a\nb", "tok\u{e9}n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(
                Token::read(&path).err().unwrap().to_string().contains("holds no bearer token"),
                "{bad:?}"
            );
        }
        std::fs::write(&path, vec![b'a'; MAX_TOKEN as usize + 1]).unwrap();
        assert!(Token::read(&path).err().unwrap().to_string().contains("larger than"));
        assert!(Token::read(&dir.path().join("none")).err().unwrap().to_string().contains("none"));
    }
}
