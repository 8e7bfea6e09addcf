use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None as Untouched},
    slowly::slowly,
    *,
};

const MODES: [PathNormalization; 4] = [Untouched, Base, MergeSlashes, DecodeAndMergeSlashes];

fn path(mode: PathNormalization, sent: &str) -> String {
    normalize(mode, sent).unwrap_or_else(|error| panic!("{mode}, {sent:?}: {error}")).path.into_owned()
}

/// Those of Istio's own tests, and others beside them.
#[test]
fn modes_normalise_as_istio_does() {
    for (sent, base, merged, decoded) in [
        ("/app/../admin", "/admin", "/admin", "/admin"),
        ("/app/%2E./admin", "/admin", "/admin", "/admin"),
        ("/app//", "/app//", "/app/", "/app/"),
        ("/app//../admin", "/app/admin", "/app/admin", "/app/admin"),
        ("/app/%2f", "/app/%2f", "/app/%2f", "/app/"),
        ("/app\\admin", "/app/admin", "/app/admin", "/app/admin"),
        ("/%2Fapp%5cadmin%5Cabc", "/%2Fapp%5cadmin%5Cabc", "/%2Fapp%5cadmin%5Cabc", "/app/admin/abc"),
        ("/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"),
        ("/%252e%252e/admin", "/%252e%252e/admin", "/%252e%252e/admin", "/%252e%252e/admin"),
        ("/..;/admin", "/..;/admin", "/..;/admin", "/..;/admin"),
        ("/ADMIN", "/ADMIN", "/ADMIN", "/ADMIN"),
        ("/x/..//admin", "//admin", "/admin", "/admin"),
        ("/%61dmin", "/admin", "/admin", "/admin"),
        ("/..", "/", "/", "/"),
        ("/../../a", "/a", "/a", "/a"),
        ("/a/.", "/a/", "/a/", "/a/"),
        ("/a/b/..", "/a/", "/a/", "/a/"),
        ("/a/./b/", "/a/b/", "/a/b/", "/a/b/"),
        ("/.well-known/x", "/.well-known/x", "/.well-known/x", "/.well-known/x"),
        ("/a/%2f../b", "/a/%2f../b", "/a/%2f../b", "/a/b"),
        ("/100%", "/100%", "/100%", "/100%"),
        ("/%zz%e4", "/%zz%e4", "/%zz%e4", "/%zz%e4"),
        // Whoever decodes once would have /admin of these.
        ("/%%361dmin", "/admin", "/admin", "/admin"),
        ("/%6%31dmin", "/admin", "/admin", "/admin"),
        ("/a/%%32e%2%45/b", "/b", "/b", "/b"),
        ("/é", "/é", "/é", "/é"),
        ("", "", "", ""),
        ("*", "*", "*", "*"),
    ] {
        let all = [sent, base, merged, decoded];
        for (mode, expected) in MODES.into_iter().zip(all) {
            assert_eq!(path(mode, sent), expected, "{mode}, {sent:?}");
        }
    }
}

#[test]
fn queries_stay_and_fragments_go() {
    for mode in MODES {
        let target = normalize(mode, "/info?x=/../1?y#z").unwrap();
        assert_eq!((&*target.path, target.query), ("/info", Some("x=/../1?y")));
        let target = normalize(mode, "/info#a?b").unwrap();
        assert_eq!((&*target.path, target.query), ("/info", None));
        assert_eq!(normalize(mode, "/?").unwrap().query, Some(""));
    }
}

#[test]
fn some_paths_go_nowhere() {
    for mode in &MODES[1..] {
        assert_eq!(normalize(*mode, "/a%00b"), Err(BadPath::Nul));
        assert_eq!(normalize(*mode, "/a%%300"), Err(BadPath::Nul));
        assert_eq!(normalize(*mode, "a/b"), Err(BadPath::Relative));
        assert_eq!(
            normalize(*mode, "%2fa"),
            if *mode == DecodeAndMergeSlashes { path_of("/a") } else { Err(BadPath::Relative) }
        );
        // A query is nobody's path.
        assert!(normalize(*mode, "/a?%00").is_ok());
    }
}

fn path_of(path: &'static str) -> Result<Target<'static>, BadPath> {
    Ok(Target { path: path.into(), query: None })
}

#[test]
fn random_paths_are_normal_once_and_for_all() {
    const PIECES: &[&str] = &[
        "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "a", "6", "1", "%", "%61", "%25",
        "%0", "0", "2", "f", "%7e", "é", ";", "%3", "+",
    ];
    let mut random = StdRng::seed_from_u64(0x9a7b);
    for _ in 0..20_000 {
        let count = random.random_range(0..14);
        let sent: String =
            std::iter::once("/").chain((0..count).map(|_| *PIECES.choose(&mut random).unwrap())).collect();
        for mode in MODES {
            let normal = normalize(mode, &sent).ok().map(|target| target.path.into_owned());
            let slow = match mode {
                Untouched => Some(sent.clone()),
                _ => slowly(mode != Base, mode == DecodeAndMergeSlashes, &sent),
            };
            assert_eq!(normal, slow, "{mode}, {sent:?}");
            if let Some(normal) = normal {
                assert_eq!(path(mode, &normal), normal, "{mode}, {sent:?}");
                let after_base =
                    mode == Untouched || !normal.split('/').any(|part| part == "." || part == "..");
                assert!(after_base, "{mode}, {sent:?}: {normal}");
            }
        }
    }
}

fn template(text: &str) -> Template {
    Template::new(text).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn templates_match_as_they_are_documented() {
    for (text, matching, other) in [
        (
            "/foo/{*}",
            &["/foo/bar", "/foo/%20"][..],
            &["/foo/", "/foo/bar/baz", "/foo", "/foo/b{r", "/foo/é"][..],
        ),
        (
            "/allow/admin/{**}",
            &["/allow/admin/", "/allow/admin/x/y.txt"],
            &["/allow/admin", "/allow/admin/é"],
        ),
        ("/store/{**}/cart", &["/store//cart", "/store/a/b/cart"], &["/store/cart", "/store/a/cart/"]),
        ("/foo/{*}/bar/{**}", &["/foo/b/bar/x", "/foo/b/bar/"], &["/foo//bar/x", "/foo/b/c/bar/x"]),
        ("/foo/{**}/", &["/foo/bar/", "/foo//"], &["/foo/bar", "/foo/bar/baz.txt", "/foo/"]),
        ("/{*}", &["/a"], &["/", "a", "/a/"]),
        ("/{**}", &["/", "/a/b", "//"], &["", "a"]),
        ("/{*}/", &["/a/"], &["/a", "//"]),
        ("/{*}/{*}/x", &["/a/b/x"], &["/a/x", "/a/b/c/x", "/a//x"]),
        ("/a/{**}/b/c", &["/a//b/c", "/a/b/c/b/c"], &["/a/b/c", "/a/x/b/d"]),
    ] {
        let template = template(text);
        assert_eq!(template.to_string(), text);
        matching.iter().for_each(|path| assert!(template.matches(path), "{text} does not match {path}"));
        other.iter().for_each(|path| assert!(!template.matches(path), "{text} matches {path}"));
    }
    for bad in [
        "/a{*}",
        "/{*}b",
        "/{**}/{*}",
        "/{**}/{**}",
        "{*}",
        "a/{*}",
        "/{*}/{x}",
        "/*/{*}",
        "/a//{*}",
        "/é/{*}",
    ] {
        assert_eq!(Template::new(bad), None, "{bad}");
    }
}

/// What it takes does not grow with the ways in which a path might be divided.
#[test]
fn no_path_takes_a_template_long() {
    let many = "/{*}".repeat(500) + "/{**}/end";
    let template = template(&many);
    let path = "/a".repeat(20_000);
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert!(!template.matches(&path));
    }
    assert!(start.elapsed().as_millis() < 1_000, "{:?}", start.elapsed());
}
