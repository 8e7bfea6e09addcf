use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn yaml_of(text: &str) -> Documents {
    read(text.as_bytes(), Syntax::Yaml)
}

/// The one document of a text that must be good.
fn one(text: &str) -> Value {
    let mut read = yaml_of(text);
    assert_eq!(read.error, None, "{text}");
    assert_eq!(read.values.len(), 1, "{text}");
    read.values.remove(0)
}

#[test]
fn documents_come_one_by_one() {
    let read = yaml_of("---\n# nothing here\n---\na: 1\n---\n---\nb: [x, null, 1.5, true]\n...\n");
    assert_eq!(read.error, None);
    assert_eq!(read.values, [json!({"a": 1}), json!({"b": ["x", null, 1.5, true]})]);
    for empty in ["", "\n \n", "# only a comment\n", "---\n"] {
        let read = yaml_of(empty);
        assert!(read.values.is_empty() && read.error.is_none(), "{empty:?}: {read:?}");
    }
}

#[test]
fn json_may_be_a_stream() {
    let good = read(b"\xef\xbb\xbf{\"a\": 1}\n{\"b\": \"<<\", \"<<\": {}}\n", Syntax::Json);
    assert_eq!(good.error, None);
    assert_eq!(good.values, [json!({"a": 1}), json!({"b": "<<", "<<": {}})]);
    let broken = read(b"{\"a\": 1} {\"b\":", Syntax::Json);
    assert_eq!(broken.values, [json!({"a": 1})]);
    assert!(broken.error.unwrap().starts_with("is not valid JSON: EOF"));
}

#[test]
fn documents_before_an_error_are_kept() {
    let read = yaml_of("a: 1\n---\nb: [\n");
    assert_eq!(read.values, [json!({"a": 1})]);
    let error = read.error.unwrap();
    assert!(error.starts_with("is not valid YAML: ") && error.contains("line"), "{error}");
}

#[test]
fn keys_are_texts_and_stand_once() {
    assert_eq!(one("8080: x\ntrue: y\n-1: z\n"), json!({"8080": "x", "true": "y", "-1": "z"}));
    for bad in
        ["a: 1\na: 2\n", "8080: x\n'8080': y\n", "null: x\n", "[a]: x\n", "a: !secret b\n", "a: .nan\n"]
    {
        assert!(yaml_of(bad).error.is_some(), "{bad:?} was taken");
    }
    assert!(read(br#"{"a": 1, "a": 2}"#, Syntax::Json).error.unwrap().contains("stands twice"));
}

#[test]
fn anchors_and_merge_keys() {
    let text =
        "base: &base {a: 1, b: 1}\nuse: {<<: *base, b: 2}\nboth: {<<: [{a: 5}, *base]}\nagain: *base\n";
    assert_eq!(
        one(text),
        json!({"base": {"a": 1, "b": 1}, "use": {"a": 1, "b": 2}, "both": {"a": 5, "b": 1}, "again": {"a": 1, "b": 1}})
    );
    assert!(yaml_of("a: {<<: [1]}\n").error.is_some());
}

#[test]
fn text_must_be_utf8() {
    let bad = read(b"a: \xff\n", Syntax::Yaml);
    assert_eq!(bad.error.unwrap(), "is not UTF-8 text: bad byte at offset 3");
    assert!(yaml_of("a: \0\n").error.is_some());
}

#[test]
fn alias_bombs_go_off_small() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..30 {
        let many = vec![format!("*a{}", n - 1); 10].join(", ");
        laughs.push_str(&format!("a{n}: &a{n} [{many}]\n"));
    }
    // Few values, much text; and many aliases of one flat list.
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100_000].join(", "));
    let flat = format!("a: &a [{}]\nb: [{}]\n", vec!["1"; 100_000].join(","), vec!["*a"; 100_000].join(","));
    let own = "a: &a [*a, *a]\n".to_owned();
    for bomb in [laughs, text, flat, own] {
        let start = Instant::now();
        let error = yaml_of(&bomb).error.expect("a bomb was taken");
        assert!(error.len() < 400, "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

/// Large texts made to be slow.
#[test]
fn hostile_texts_end_in_time() {
    const SIZE: usize = 1 << 20;
    let filled = |pattern: &str| pattern.repeat(SIZE / pattern.len());
    let mut texts: Vec<String> = [
        "[",
        "{",
        "- ",
        "? ",
        "[,",
        "{a: ",
        "&a ",
        "!",
        "'",
        "\"\\",
        "%",
        "---\n",
        "\n",
        "- - - a\n",
        "a:\n ",
        "[a,",
        "#",
        "- &a b\n",
        "x",
    ]
    .into_iter()
    .map(filled)
    .collect();
    texts.push("{a: ".repeat(400) + &filled("b,"));
    for text in texts {
        let name = &text[..10];
        for syntax in [Syntax::Yaml, Syntax::Json] {
            let start = Instant::now();
            let read = read(text.as_bytes(), syntax);
            assert!(read.values.len() <= 1, "{name:?}");
            // About a second at most on an idle machine.
            assert!(start.elapsed() < Duration::from_secs(60), "{name:?} {syntax:?}: {:?}", start.elapsed());
        }
    }
}
