//! Methods and paths that were requested, in bounded room: what looks like an identifier in a path becomes `{*}` at once, and of
//! too many paths those alike become one template, which matches all of them. What is allowed by these was requested, or is like it.

use std::collections::{BTreeMap, BTreeSet};

/// Paths and templates of one flow, whatever the method.
const MAX_PATHS: usize = 32;
/// Methods of one flow.
const MAX_METHODS: usize = 16;
/// Bytes of a path, and of a method.
const MAX_LENGTH: usize = 256;
/// A segment from here on is an identifier.
const LONG_SEGMENT: usize = 40;

const ANY_SEGMENT: &str = "{*}";
const ANY_PATH: &str = "{**}";

/// The methods that were requested, and by each which paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operations {
    methods: BTreeMap<Box<str>, Paths>,
    /// There were more methods than are kept.
    any: bool,
}

/// Values of the field `paths` that match all paths that were requested.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Paths {
    Any,
    These(BTreeSet<Box<str>>),
}

impl Operations {
    /// Adds a request.
    pub(super) fn add(&mut self, method: &str, path: &str) {
        if self.any {
            return;
        }
        if method.len() > MAX_LENGTH || method.contains('*') || method.is_empty() {
            return self.forget();
        }
        if !self.methods.contains_key(method) && self.methods.len() >= MAX_METHODS {
            return self.forget();
        }
        let paths = self.methods.entry(method.into()).or_insert_with(|| Paths::These(BTreeSet::new()));
        paths.add(path);
        while self.methods.values().map(Paths::len).sum::<usize>() > MAX_PATHS {
            let Some(most) = self.methods.values_mut().max_by_key(|paths| paths.len()) else { break };
            most.fold();
        }
    }

    /// Whether anything may be requested, as more was than is kept.
    pub(crate) fn is_any(&self) -> bool {
        self.any
    }

    /// Each method with the values of `paths`; without any, all paths.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.methods.iter().map(|(method, paths)| {
            let paths = match paths {
                Paths::Any => Vec::new(),
                Paths::These(paths) => paths.iter().map(|path| &**path).collect(),
            };
            (&**method, paths)
        })
    }

    fn forget(&mut self) {
        *self = Self { methods: BTreeMap::new(), any: true };
    }
}

impl Paths {
    fn add(&mut self, path: &str) {
        let Self::These(paths) = self else { return };
        match folded(path) {
            Some(path) => _ = paths.insert(path),
            None => *self = Self::Any,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Any => 0,
            Self::These(paths) => paths.len(),
        }
    }

    /// Makes fewer of them.
    fn fold(&mut self) {
        let Self::These(paths) = self else { return };
        if !fold_segment(paths) && !fold_rest(paths) {
            *self = Self::Any;
        }
    }
}

/// A value that matches the path, with identifiers in it made `{*}`; `None` where none but one of all paths does.
fn folded(path: &str) -> Option<Box<str>> {
    let rest = path.strip_prefix('/')?;
    if path.len() > MAX_LENGTH || path.contains(['*', '{', '}']) {
        return None;
    }
    if !rest.split('/').any(is_identifier) {
        return Some(path.into());
    }
    let mut template = String::with_capacity(path.len());
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        template.push('/');
        let last = segments.peek().is_none();
        if segment.is_empty() && !last || !segment.bytes().all(is_plain) {
            // Templates have no such segment. The rest may hold anything.
            template.push_str(ANY_PATH);
            return segments.chain([segment]).all(is_within_any_path).then(|| template.into());
        }
        template.push_str(if is_identifier(segment) { ANY_SEGMENT } else { segment });
    }
    Some(template.into())
}

/// Of the paths that differ in one segment only, the most become one.
fn fold_segment(paths: &mut BTreeSet<Box<str>>) -> bool {
    let mut alike = BTreeMap::<(Vec<&str>, Vec<&str>), BTreeSet<&str>>::new();
    for path in paths.iter().filter(|path| is_template(path)) {
        let segments: Vec<&str> = path[1..].split('/').collect();
        for (at, segment) in segments.iter().enumerate() {
            if !segment.is_empty() && *segment != ANY_PATH {
                let around = (segments[..at].to_vec(), segments[at + 1..].to_vec());
                alike.entry(around).or_default().insert(segment);
            }
        }
    }
    let most = alike.into_iter().max_by_key(|(_, segments)| segments.len());
    let Some(((before, after), segments)) = most.filter(|(_, segments)| segments.len() > 2) else {
        return false;
    };
    let join = |segment| {
        let all = before.iter().copied().chain([segment]).chain(after.iter().copied());
        all.fold(String::new(), |path, segment| path + "/" + segment).into_boxed_str()
    };
    let template = join(ANY_SEGMENT);
    let gone: Vec<Box<str>> = segments.into_iter().map(join).collect();
    for path in gone {
        paths.remove(&path);
    }
    paths.insert(template);
    true
}

/// All paths below the first segment that has the most become one.
fn fold_rest(paths: &mut BTreeSet<Box<str>>) -> bool {
    let mut below = BTreeMap::<&str, Vec<Box<str>>>::new();
    for path in paths.iter() {
        let Some((first, rest)) = path[1..].split_once('/') else { continue };
        let fits = rest.split('/').all(|segment| is_within_any_path(segment) || is_operator(segment));
        if !first.is_empty() && first.bytes().all(is_plain) && fits {
            below.entry(first).or_default().push(path.clone());
        }
    }
    let most = below.into_iter().max_by_key(|(_, paths)| paths.len());
    let Some((first, gone)) = most.filter(|(_, paths)| paths.len() > 1) else { return false };
    let template = format!("/{first}/{ANY_PATH}").into_boxed_str();
    for path in gone {
        paths.remove(&path);
    }
    paths.insert(template);
    true
}

/// Whether a segment of it may become `{*}`: a template has whole segments of certain characters.
fn is_template(path: &str) -> bool {
    let mut segments = path[1..].split('/').rev();
    let last = segments.next().unwrap_or_default();
    let fits = |segment: &str| is_operator(segment) || (!segment.is_empty() && segment.bytes().all(is_plain));
    (last.is_empty() || fits(last)) && segments.all(fits)
}

fn is_operator(segment: &str) -> bool {
    segment == ANY_SEGMENT || segment == ANY_PATH
}

fn is_within_any_path(segment: &str) -> bool {
    segment.bytes().all(is_plain)
}

/// The characters that a template's operators match, and its other segments may have.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&byte)
}

/// Whether it is a number, a UUID, a hash, or something as long.
fn is_identifier(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let has_digit = bytes.iter().any(u8::is_ascii_digit);
    let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let is_hex = bytes.len() >= 8 && bytes.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    is_number || (is_hex && has_digit) || bytes.len() >= LONG_SEGMENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(requests: &[(&str, &str)]) -> Operations {
        let mut operations = Operations::default();
        for (method, path) in requests {
            operations.add(method, path);
        }
        operations
    }

    #[test]
    fn identifiers_become_a_template() {
        for (path, value) in [
            ("/", Some("/")),
            ("/healthz", Some("/healthz")),
            ("/api/v1/items/", Some("/api/v1/items/")),
            ("/items/17", Some("/items/{*}")),
            ("/items/17/", Some("/items/{*}/")),
            ("/items/17/parts/4f0c1d2e", Some("/items/{*}/parts/{*}")),
            ("/users/0b8e7c1a-3f52-4e0e-9a43-6f1f0d6f7a11/cart", Some("/users/{*}/cart")),
            ("/pkg.Service/Method", Some("/pkg.Service/Method")),
            ("/deadbeef", Some("/deadbeef")),
            ("/a//b", Some("/a//b")),
            ("/a//17", Some("/a/{**}")),
            ("/a/17/ü", None),
            ("/ü", Some("/ü")),
            ("*", None),
            ("/a*", None),
            ("/{*}", None),
        ] {
            assert_eq!(folded(path).as_deref(), value, "{path}");
        }
    }

    #[test]
    fn too_many_paths_become_few_that_match_them() {
        let mut operations = Operations::default();
        for name in 0..1_000 {
            operations.add("GET", &format!("/shop/item-{name}/price"));
        }
        operations.add("POST", "/shop/cart");
        let all: Vec<_> = operations.iter().collect();
        let [("GET", get), ("POST", post)] = &all[..] else { panic!("{all:?}") };
        assert!(get.contains(&"/shop/{*}/price") && get.len() < MAX_PATHS, "{get:?}");
        assert_eq!(post, &["/shop/cart"]);
    }

    #[test]
    fn whatever_comes_the_room_is_bounded() {
        let mut operations = Operations::default();
        for n in 0..2_000_u32 {
            let deep = "/x".repeat(n as usize % 120);
            operations.add("GET", &format!("/d{n}{deep}/y{n}z"));
        }
        let paths: usize = operations.iter().map(|(_, paths)| paths.len()).sum();
        assert!(paths <= MAX_PATHS, "{operations:?}");
        for n in 0..100 {
            operations.add(&format!("M{n}"), "/");
        }
        assert!(operations.is_any());
        assert_eq!(of(&[("GET", "*")]).iter().collect::<Vec<_>>(), [("GET", vec![])]);
    }
}
