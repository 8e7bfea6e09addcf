//! Edits of network configuration lists: the plugin's entry put in, brought up to date, taken out.
//!
//! Promises that every other byte stays as it was, so that nothing is lost that only others understand, and that taking out
//! undoes putting in. Works on texts; files are left to the installer.

use std::ops::Range;

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::protocol::BINARY;

/// `text` with `entry`, a JSON object, as the plugin's place in the chain; `None` if it is there already.
pub(super) fn with_entry(text: &str, entry: &str) -> Result<Option<String>, String> {
    let plugins = plugins(text)?;
    if let Some(own) = own(text, &plugins) {
        let same = parse(&text[own.clone()]).ok() == parse(entry).ok();
        return Ok((!same).then(|| splice(text, own, entry)));
    }
    let (Some(first), Some(last)) = (plugins.first(), plugins.last()) else {
        return Err("its list of plugins is empty".to_owned());
    };
    let before_first = &text[..first.start];
    let gap = &before_first[before_first.trim_end().len()..];
    Ok(Some(splice(text, last.end..last.end, &format!(",{gap}{entry}"))))
}

/// `text` without the plugin's entry; `None` if it has none.
pub(super) fn without_entry(text: &str) -> Result<Option<String>, String> {
    let plugins = plugins(text)?;
    let Some(own) = own(text, &plugins) else { return Ok(None) };
    let at = plugins.iter().position(|plugin| *plugin == own).unwrap_or_default();
    let cut = match (at.checked_sub(1).and_then(|before| plugins.get(before)), plugins.get(at + 1)) {
        (Some(before), _) => before.end..own.end,
        (None, Some(after)) => own.start..after.start,
        (None, None) => own,
    };
    Ok(Some(splice(text, cut, "")))
}

/// A list of one plugin's configuration and the entry.
pub(super) fn from_single(text: &str, entry: &str) -> Result<String, String> {
    let single = parse(text)?;
    if single["type"].as_str().is_none_or(str::is_empty) {
        return Err("it names no plugin as its type".to_owned());
    }
    let name = single["name"].as_str().ok_or("it has no name")?;
    let mut list = json!({ "name": name });
    if let Some(version) = single.get("cniVersion") {
        list["cniVersion"] = version.clone();
    }
    let list = list.to_string();
    let head = list.trim_end_matches('}');
    Ok(format!("{head},\"plugins\":[\n{},\n{entry}\n]}}\n", text.trim()))
}

/// Whether a list has the plugin's entry.
pub(super) fn has_entry(text: &str) -> bool {
    plugins(text).is_ok_and(|plugins| own(text, &plugins).is_some())
}

fn own(text: &str, plugins: &[Range<usize>]) -> Option<Range<usize>> {
    let is_own =
        |plugin: &&Range<usize>| parse(&text[(*plugin).clone()]).is_ok_and(|plugin| plugin["type"] == BINARY);
    plugins.iter().find(is_own).cloned()
}

fn parse(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    if value.is_object() { Ok(value) } else { Err("it is no JSON object".to_owned()) }
}

fn splice(text: &str, range: Range<usize>, with: &str) -> String {
    [&text[..range.start], with, &text[range.end..]].concat()
}

/// Where the plugins stand in a list.
fn plugins(text: &str) -> Result<Vec<Range<usize>>, String> {
    /// The same key twice is an error of the parser.
    #[derive(Deserialize)]
    struct List<'a> {
        #[serde(borrow)]
        plugins: Option<&'a RawValue>,
    }

    parse(text)?;
    let list: List<'_> =
        serde_json::from_str(text).map_err(|error| format!("it is no such list: {error}"))?;
    let plugins = list.plugins.ok_or("it has no \"plugins\"")?;
    let plugins: Vec<&RawValue> =
        serde_json::from_str(plugins.get()).map_err(|_| "its \"plugins\" are no list")?;
    // Each is borrowed from the text, and so tells its place in it.
    let place = |plugin: &RawValue| {
        let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
        start..start + plugin.get().len()
    };
    Ok(plugins.into_iter().map(place).collect())
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    const ENTRY: &str = r#"{"type":"ambit-cni","runDir":"/run/ambit"}"#;

    fn added(text: &str) -> String {
        with_entry(text, ENTRY).unwrap().unwrap()
    }

    #[test]
    fn the_entry_comes_last_and_all_else_stays() {
        for (text, expected) in [
            (
                r#"{"plugins":[{"type":"bridge"}]}"#,
                r#"{"plugins":[{"type":"bridge"},{"type":"ambit-cni","runDir":"/run/ambit"}]}"#,
            ),
            (
                "{\n  \"x\": 1.50, \"plugins\": [\n    { \"type\": \"a\", \"deep\": [\"]\", {\"}\": \"\\\"[\"}] }\n  ],\n  \"y\": \"plugins\"\n}\n",
                "{\n  \"x\": 1.50, \"plugins\": [\n    { \"type\": \"a\", \"deep\": [\"]\", {\"}\": \"\\\"[\"}] },\n    {\"type\":\"ambit-cni\",\"runDir\":\"/run/ambit\"}\n  ],\n  \"y\": \"plugins\"\n}\n",
            ),
            (
                r#"{"nested":{"plugins":[1]},"\u0070lugins":[{"type":"é"} , {"n":12345678901234567890123}]}"#,
                r#"{"nested":{"plugins":[1]},"\u0070lugins":[{"type":"é"} , {"n":12345678901234567890123},{"type":"ambit-cni","runDir":"/run/ambit"}]}"#,
            ),
        ] {
            assert_eq!(added(text), expected);
            assert_eq!(with_entry(expected, ENTRY), Ok(None), "it is there already");
            assert_eq!(without_entry(expected).unwrap().as_deref(), Some(text));
            assert_eq!(without_entry(text), Ok(None));
        }
    }

    #[test]
    fn an_old_entry_is_brought_up_to_date_in_its_place() {
        let old = r#"{"plugins":[{"type":"a"},{"type":"ambit-cni","runDir":"/old"},{"type":"b"}]}"#;
        let new = added(old);
        assert_eq!(
            new,
            r#"{"plugins":[{"type":"a"},{"type":"ambit-cni","runDir":"/run/ambit"},{"type":"b"}]}"#
        );
        assert_eq!(
            without_entry(&new).unwrap().as_deref(),
            Some(r#"{"plugins":[{"type":"a"},{"type":"b"}]}"#)
        );
        let first = r#"{"plugins":[{"type":"ambit-cni"}, {"type":"b"}]}"#;
        assert_eq!(without_entry(first).unwrap().as_deref(), Some(r#"{"plugins":[{"type":"b"}]}"#));
        // The same with other spacing is the same.
        let spaced = r#"{"plugins":[{ "runDir": "/run/ambit", "type": "ambit-cni" }]}"#;
        assert_eq!(with_entry(spaced, ENTRY), Ok(None));
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_word_about_it() {
        for (text, expected) in [
            ("", "no JSON"),
            ("{", "no JSON"),
            ("[]", "no JSON object"),
            (r#"{"type":"bridge"}"#, "no \"plugins\""),
            (r#"{"plugins":{}}"#, "no list"),
            (r#"{"plugins":[]}"#, "empty"),
            (r#"{"plugins":[{}],"plugins":[{}]}"#, "duplicate field"),
            (r#"{"plugins":[{}]} trailing"#, "no JSON"),
        ] {
            let error = with_entry(text, ENTRY).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single = "{ \"cniVersion\": \"0.3.1\", \"name\": \"net\", \"type\": \"bridge\", \"x\": {} }\n";
        let list = from_single(single, ENTRY).unwrap();
        let parsed: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&parsed["name"], &parsed["cniVersion"]), (&json!("net"), &json!("0.3.1")));
        assert_eq!(parsed["plugins"][0], serde_json::from_str::<Value>(single).unwrap());
        assert_eq!(parsed["plugins"][1], serde_json::from_str::<Value>(ENTRY).unwrap());
        assert!(has_entry(&list));
        assert!(from_single(r#"{"name":"n"}"#, ENTRY).is_err());
        assert!(from_single(r#"{"type":"bridge"}"#, ENTRY).is_err());
    }

    /// Any list, however written, reads as before with one plugin more, and is itself again afterwards.
    #[test]
    fn random_lists_survive_both_edits_byte_for_byte() {
        let mut random = StdRng::seed_from_u64(7);
        for round in 0..2_000 {
            let mut text = String::from("{");
            for member in 0..random.random_range(0..3) {
                text += &format!(
                    "{}\"m{member}\"{}:{},",
                    blank(&mut random),
                    blank(&mut random),
                    value(&mut random, 3)
                );
            }
            text +=
                &format!("{}\"plugins\"{}:{}[", blank(&mut random), blank(&mut random), blank(&mut random));
            let count = random.random_range(1..4);
            for plugin in 0..count {
                let comma = if plugin + 1 < count { "," } else { "" };
                text +=
                    &format!("{}{}{}{comma}", blank(&mut random), value(&mut random, 3), blank(&mut random));
            }
            text +=
                &format!("]{},\"z\":{}}}{}", blank(&mut random), value(&mut random, 2), blank(&mut random));
            let mut before: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{round}: {error}: {text}"));
            let with = added(&text);
            let after: Value =
                serde_json::from_str(&with).unwrap_or_else(|error| panic!("{round}: {error}: {with}"));
            before["plugins"].as_array_mut().unwrap().push(serde_json::from_str(ENTRY).unwrap());
            assert_eq!(before, after, "{round}: {text}");
            assert_eq!(without_entry(&with).unwrap().as_deref(), Some(&*text), "{round}");
        }
    }

    fn value(random: &mut StdRng, depth: usize) -> String {
        let kinds = if depth == 0 { 4 } else { 6 };
        match random.random_range(0..kinds) {
            0 => ["null", "true", "false"][random.random_range(0..3)].to_owned(),
            1 => ["0", "-1.5e+3", "12345678901234567890"][random.random_range(0..3)].to_owned(),
            2 => ["\"\"", "\"]},\\\"\"", "\"\\\\\"", "\"plugins\"", "\"\\u005d é\""]
                [random.random_range(0..5)]
            .to_owned(),
            3 => "\"[{\"".to_owned(),
            4 => {
                let items: Vec<String> =
                    (0..random.random_range(0..3)).map(|_| value(random, depth - 1)).collect();
                format!("[{}{}{}]", blank(random), items.join(" ,"), blank(random))
            }
            _ => {
                let items: Vec<String> = (0..random.random_range(0..3))
                    .map(|key| format!("\"k{key}\\\"\" : {}", value(random, depth - 1)))
                    .collect();
                format!("{{{}{}{}}}", blank(random), items.join(","), blank(random))
            }
        }
    }

    fn blank(random: &mut StdRng) -> &'static str {
        ["", "", " ", "\n  ", "\t"][random.random_range(0..5)]
    }
}
