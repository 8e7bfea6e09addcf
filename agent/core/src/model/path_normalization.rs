//! How the paths of HTTP requests are rewritten before anybody judges or forwards them.

use std::{fmt, str::FromStr};

/// Istio's `meshConfig.pathNormalization`. Each mode does what those before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathNormalization {
    /// Paths stay as they are.
    None,
    /// Unreserved characters are decoded, `\` becomes `/`, and dot segments are removed.
    #[default]
    Base,
    /// Slashes in a row become one.
    MergeSlashes,
    /// Encoded slashes and backslashes are decoded before.
    DecodeAndMergeSlashes,
}

/// Not one of the modes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use none, base, merge-slashes or decode-and-merge-slashes")]
pub struct UnknownPathNormalization;

impl PathNormalization {
    const ALL: [Self; 4] = [Self::None, Self::Base, Self::MergeSlashes, Self::DecodeAndMergeSlashes];

    /// As settings have it.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Base => "base",
            Self::MergeSlashes => "merge-slashes",
            Self::DecodeAndMergeSlashes => "decode-and-merge-slashes",
        }
    }
}

impl fmt::Display for PathNormalization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Reads a label, or what Istio's mesh configuration has in its place, such as `MERGE_SLASHES`.
impl FromStr for PathNormalization {
    type Err = UnknownPathNormalization;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let label = text.to_ascii_lowercase().replace('_', "-");
        if label == "default" {
            return Ok(Self::default());
        }
        Self::ALL.into_iter().find(|mode| mode.label() == label).ok_or(UnknownPathNormalization)
    }
}
