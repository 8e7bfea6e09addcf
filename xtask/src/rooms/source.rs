//! Paths in Rust source, read without a parser: comments, texts and test code fall away first.

/// Every path in `text` that starts at this crate's root, at another crate or at a name in scope, written out from
/// `crate::` where it leads there. `depth` is how many modules deep the file is.
pub(super) fn imports(text: &str, depth: usize) -> Vec<String> {
    let mut tokens = tokens(&bare(text));
    strip_tests(&mut tokens);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let follows = at.checked_sub(1).is_some_and(|before| tokens[before] == "::");
        if is_name(&tokens[at]) && !follows {
            at = tree(&tokens, at, "", &mut found);
        } else {
            at += 1;
        }
    }
    found.iter().filter_map(|path| from_root(path, depth)).collect()
}

/// Reads a path, or a tree of paths in braces, that starts at token `at` below `prefix`; returns where it ends.
fn tree(tokens: &[String], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut path = prefix.to_owned();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if !path.is_empty() => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    let next = tree(tokens, at, &path, found);
                    at = next.max(at + 1);
                }
                return at + 1;
            }
            Some(name) if is_name(name) => {
                path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
                at += 1;
                if tokens.get(at).is_some_and(|token| token == "::") {
                    at += 1;
                    continue;
                }
            }
            _ => {}
        }
        if path != prefix {
            found.push(path);
        }
        return at;
    }
}

/// A path as it looks from the crate's root; `None` for one that stays inside its own room.
fn from_root(path: &str, depth: usize) -> Option<String> {
    let ups = path.split("::").take_while(|part| *part == "super").count();
    if ups == 0 {
        return (!path.starts_with("self")).then(|| path.to_owned());
    }
    let rest: Vec<&str> = path.split("::").skip(ups).collect();
    (ups >= depth).then(|| format!("crate::{}", rest.join("::")))
}

/// Removes every item under `#[cfg(test)]`.
fn strip_tests(tokens: &mut Vec<String>) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    while let Some(start) = tokens.windows(MARK.len()).position(|window| window == MARK) {
        let mut end = start + MARK.len();
        let mut depth = 0_usize;
        while let Some(token) = tokens.get(end) {
            end += 1;
            match token.as_str() {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 && tokens.get(end).is_none_or(|next| next != ";") {
                        break;
                    }
                }
                ";" if depth == 0 => break,
                _ => {}
            }
        }
        tokens.drain(start..end);
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and single other characters.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(rest[..length].to_owned());
        }
        rest = &rest[length..];
    }
    tokens
}

/// `text` without comments, and with every string and character literal empty.
fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let before_is_name = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if first == '"' {
            quoted(rest)
        } else if !before_is_name && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            raw_string(rest)
        } else if first == '\'' {
            character(rest)
        } else {
            0
        };
        if skip > 0 {
            out.push(' ');
            rest = &rest[skip..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        if text.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn quoted(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn raw_string(text: &str) -> usize {
    let hashes = text[1..].bytes().take_while(|byte| *byte == b'#').count();
    let open = 1 + hashes;
    if text.as_bytes().get(open) != Some(&b'"') {
        // A raw identifier, such as r#type.
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    text[open + 1..].find(&close).map_or(text.len(), |end| open + 1 + end + close.len())
}

/// The length of a character literal, or 0 at a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(end, _)| end + 3)
        }
        Some(_) => match chars.next() {
            Some((end, '\'')) => end + 1,
            _ => 0,
        },
        None => 0,
    }
}
