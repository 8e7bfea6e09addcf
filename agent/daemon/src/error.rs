//! Errors as people read them.

use std::error::Error;

/// An error and its causes in one line. A cause that the text before it has said already is left out.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn every_cause_is_said_once() {
        for (text, expected) in
            [("cannot read it", "cannot read it: gone"), ("cannot read it: gone", "cannot read it: gone")]
        {
            assert_eq!(with_causes(&Outer { text, source: io::Error::other("gone") }), expected);
        }
    }
}
