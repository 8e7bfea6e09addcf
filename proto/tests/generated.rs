//! Keeps `src/gen` equal to what the `.proto` files say. With `AMBIT_REGENERATE=1` it rewrites the files instead of
//! failing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

const PROTOS: &[&str] = &[
    "ambit/admin/v1/admin.proto",
    "ambit/policy/v1/policy.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "istio/v1/auth/ca.proto",
    "opentelemetry/trace.proto",
    "spire/delegatedidentity.proto",
];
/// The answers that are shown as JSON just as they are.
const SHOWN: &str = ".ambit.policy.v1";

#[test]
fn generated_code_is_current() {
    let own = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let root = Path::new(&own);
    let fresh_dir = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(PROTOS, [root]).unwrap_or_else(|error| panic!("{error:?}"));
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .type_attribute(SHOWN, "#[derive(serde::Serialize)]")
        .type_attribute(SHOWN, "#[serde(rename_all = \"camelCase\")]")
        .out_dir(fresh_dir.path())
        .compile_fds(descriptors)
        .unwrap();

    let checked_in_dir = root.join("src/gen");
    let fresh = files(fresh_dir.path()).unwrap();
    assert!(!fresh.is_empty(), "nothing was generated");
    if std::env::var_os("AMBIT_REGENERATE").is_some_and(|value| value == "1") {
        for name in files(&checked_in_dir).unwrap().keys().filter(|name| !fresh.contains_key(*name)) {
            fs::remove_file(checked_in_dir.join(name)).unwrap();
        }
        for (name, text) in &fresh {
            fs::write(checked_in_dir.join(name), text).unwrap();
        }
    }
    let checked_in = files(&checked_in_dir).unwrap();
    assert!(
        fresh.keys().eq(checked_in.keys()) && fresh.iter().all(|(name, text)| checked_in[name] == *text),
        "src/gen differs from the .proto files; run: AMBIT_REGENERATE=1 cargo test -p ambit-proto"
    );
}

/// The Rust files of a folder: name to text.
fn files(dir: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            found.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(found)
}
