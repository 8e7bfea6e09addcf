//! Paths normalised step by step over whole texts, for tests to hold the quick way against; the fuzz target has it too, and so it takes
//! nothing of the crate.

/// What a path without query is as it is judged; `None` of one that goes nowhere. It may merge slashes, and decode them.
pub(crate) fn slowly(merges: bool, decodes: bool, sent: &str) -> Option<String> {
    let mut text: Vec<char> = sent.chars().map(|c| if c == '\\' { '/' } else { c }).collect();
    'again: loop {
        for at in 0..text.len().saturating_sub(2) {
            let [percent, high, low] = [text[at], text[at + 1], text[at + 2]];
            let hex: String = [high, low].iter().collect();
            let Some(byte) = u8::from_str_radix(&hex, 16).ok().filter(|_| percent == '%' && high != '+')
            else {
                continue;
            };
            let meant = char::from(byte);
            if byte == 0 {
                return None;
            }
            let slash = decodes && (meant == '/' || meant == '\\');
            if slash || meant.is_ascii_alphanumeric() || "-._~".contains(meant) {
                text.splice(at..at + 3, [if slash { '/' } else { meant }]);
                continue 'again;
            }
        }
        break;
    }
    let text: String = text.into_iter().collect();
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = text.strip_prefix('/')?.split('/').collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let mut path = format!("/{}", kept.join("/"));
    while merges && path.contains("//") {
        path = path.replace("//", "/");
    }
    Some(path)
}
