//! Findings as SARIF 2.1.0 (<https://docs.oasis-open.org/sarif/sarif/v2.1.0/>), which code scanning takes.

use std::path::Path;

use ambit_core::diagnosis::CODES;
use ambit_proto::policy::v1::{AnalyzeResponse, Finding};
use serde_json::{Value, json};

use crate::files;

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";
/// The longest file in which a line is looked for, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Codes of what cannot be read, or is told where it is read.
const OF_READING: [(&str, &str); 2] = [
    ("unreadable", "an object or a file cannot be read, and counts as the strictest that it may say"),
    ("notice", "an object has another effect than it states"),
];

pub(super) fn log(answer: &AnalyzeResponse) -> Value {
    let rules = CODES.iter().chain(&OF_READING);
    let rules: Vec<Value> =
        rules.map(|(code, about)| json!({ "id": code, "shortDescription": { "text": about } })).collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "ambit",
                "version": env!("CARGO_PKG_VERSION"),
                "informationUri": "https://ambit.dev",
                "rules": rules,
            } },
            "results": answer.findings.iter().map(result).collect::<Vec<_>>(),
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let Finding { code, level, object, field, message, place } = finding;
    let level = if level == "info" { "note" } else { level };
    let text: Vec<&str> = [&**object, field, message].into_iter().filter(|part| !part.is_empty()).collect();
    let mut location = json!({});
    let path = Path::new(place);
    if path.is_file() {
        let region = json!({ "startLine": line_of(path, object) });
        location["physicalLocation"] = json!({ "artifactLocation": { "uri": uri(path) }, "region": region });
    }
    if !object.is_empty() {
        location["logicalLocations"] = json!([{ "fullyQualifiedName": object, "kind": "object" }]);
    }
    json!({
        "ruleId": code,
        "level": level,
        "message": { "text": text.join(": ") },
        "locations": [location],
    })
}

/// Relative to where the command runs, as code scanning wants it in a checkout.
fn uri(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(&here).unwrap_or(path).to_string_lossy();
    path.bytes()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// The line at which an object begins, by its kind and name, counted from 1; the first one where that cannot be told.
fn line_of(path: &Path, object: &str) -> usize {
    let found = || {
        let text = files::read_text(path, MAX_FILE).ok()?;
        let (kind, name) = object.split_once(' ')?;
        let name = name.rsplit('/').next()?;
        let mut start = 1;
        let mut has = (false, false);
        for (at, line) in text.lines().enumerate() {
            if line.starts_with("---") {
                (start, has) = (at + 2, (false, false));
                continue;
            }
            has.0 |= says(line, "kind", kind);
            has.1 |= says(line, "name", name);
            if has == (true, true) {
                return Some(start);
            }
        }
        None
    };
    found().unwrap_or(1)
}

/// Whether a line gives that value to that key, be it within braces.
fn says(line: &str, key: &str, value: &str) -> bool {
    let pairs = line.split(['{', ',', '}']);
    let unquoted = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    pairs
        .filter_map(|pair| pair.split_once(':'))
        .any(|(own, says)| unquoted(own.trim().trim_start_matches("- ")) == key && unquoted(says) == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_placed_at_its_object() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my policies.yaml");
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: p}\n---\nkind: AuthorizationPolicy\nmetadata:\n  \
                    name: other\n---\n# about p\nkind: AuthorizationPolicy\nmetadata: {name: \"p\", namespace: shop}\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(line_of(&path, "AuthorizationPolicy shop/p"), 9);
        assert_eq!(line_of(&path, "AuthorizationPolicy shop/none"), 1);
        let finding = Finding {
            code: "selects-nothing".to_owned(),
            level: "info".to_owned(),
            object: "AuthorizationPolicy shop/p".to_owned(),
            place: path.display().to_string(),
            message: "matches no pod".to_owned(),
            ..Finding::default()
        };
        let log = log(&AnalyzeResponse { findings: vec![finding], policies: 1, pods: 1 });
        let result = &log["runs"][0]["results"][0];
        assert_eq!((&result["ruleId"], &result["level"]), (&json!("selects-nothing"), &json!("note")));
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["region"]["startLine"], 9);
        assert!(place["artifactLocation"]["uri"].as_str().unwrap().ends_with("my%20policies.yaml"));
        assert_eq!(log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap().len(), CODES.len() + 2);
    }
}
