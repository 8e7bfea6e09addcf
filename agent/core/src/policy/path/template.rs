//! Templates of paths: `{*}` stands for one segment, `{**}` for any text, and everything else for itself.

use std::fmt;

const ONE: &str = "{*}";
const ANY: &str = "{**}";

/// A path with operators in it. Matching it takes one pass over the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Template {
    written: Box<str>,
    /// What stands before each `{*}`, and before `{**}`.
    before: Box<[Box<str>]>,
    /// Whether the last operator is `{**}`.
    any: bool,
    /// What stands behind the last operator.
    end: Box<str>,
}

impl Template {
    /// Whether a value of a policy is meant as a template.
    pub(in crate::policy) fn is_meant(text: &str) -> bool {
        text.contains(ONE) || text.contains(ANY)
    }

    /// Reads a template; none if it is not one, as Istio has it: operators are whole segments, no operator follows `{**}`, and
    /// between slashes there is always something.
    pub(in crate::policy) fn new(text: &str) -> Option<Self> {
        let within = text.strip_prefix('/')?;
        let within = within.strip_suffix('/').unwrap_or(within);
        let (mut before, mut any, mut literal) = (Vec::new(), false, String::new());
        for segment in within.split('/') {
            literal.push('/');
            match segment {
                ONE | ANY if any => return None,
                ONE | ANY => {
                    before.push(std::mem::take(&mut literal).into_boxed_str());
                    any = segment == ANY;
                }
                _ if !segment.is_empty() && segment.bytes().all(is_path_character) => {
                    literal.push_str(segment);
                }
                _ => return None,
            }
        }
        if text.len() > 1 && text.ends_with('/') {
            literal.push('/');
        }
        Some(Self { written: text.into(), before: before.into(), any, end: literal.into() })
    }

    pub(in crate::policy) fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        let mut operators = self.before.len();
        for before in &self.before {
            let Some(behind) = rest.strip_prefix(&**before) else { return false };
            operators -= 1;
            if self.any && operators == 0 {
                let within = behind.strip_suffix(&*self.end);
                return within
                    .is_some_and(|text| text.bytes().all(|byte| byte == b'/' || is_path_character(byte)));
            }
            let length = behind.bytes().take_while(|byte| is_path_character(*byte)).count();
            if length == 0 {
                return false;
            }
            rest = &behind[length..];
        }
        rest == &*self.end
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The characters of a segment (`pchar` of RFC 3986, with `%` for itself).
fn is_path_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}
