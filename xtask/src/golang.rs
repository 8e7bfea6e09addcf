//! Programs built from their published Go modules into a cache that outlives the workspace.
//!
//! A program appears in the cache whole or not at all. Leaves to others which programs, of which versions.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use crate::{
    setup,
    workspace::{output, run, step},
};

/// The first Go that fetches, by itself, the toolchain that a module asks for.
const OLDEST_GO: (u32, u32) = (1, 21);

/// Programs that come out of one module.
#[derive(Default)]
pub(crate) struct Source {
    pub(crate) module: &'static str,
    pub(crate) version: &'static str,
    /// The version of the module's own staging modules, where it replaces them by folders that are not published with it.
    pub(crate) staging: Option<String>,
    /// Packages below the module; the last part of each is the program's name, unless `renamed` says otherwise.
    pub(crate) packages: &'static [&'static str],
    pub(crate) renamed: Option<&'static str>,
    /// A main package of ours in place of the module's, where that holds far more than a cluster needs.
    pub(crate) main: Option<String>,
    pub(crate) ldflags: String,
    /// Whether parts of it are C, which the machine's gcc compiles.
    pub(crate) cgo: bool,
}

/// Makes sure that every program is in `cache`; `told` says what is built where one is missing, and how long it takes.
pub(crate) fn programs(cache: &Path, sources: &[Source], told: &str) -> Result<()> {
    let missing = |source: &Source| source.names().any(|name| !cache.join(name).is_file());
    if !sources.iter().any(missing) {
        return Ok(());
    }
    let go = go()?;
    step(told, || {
        fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
        let lock = File::create(cache.join("build.lock")).context("the lock of the cache folder")?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let building = cache.join("building");
        for source in sources.iter().filter(|source| missing(source)) {
            // What a build that was killed has left is nobody's: this process has the lock.
            setup::remove(&building)?;
            source.build(&go, &building, cache)?;
        }
        setup::remove(&building)
    })
}

impl Source {
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.iter().map(|package| {
            self.renamed.unwrap_or_else(|| package.rsplit_once('/').map_or(*package, |(_, name)| name))
        })
    }

    /// Builds the programs in the folder `building`, and moves each into `cache` when it is whole.
    ///
    /// A module that replaces others by folders of its own cannot be installed by name. A module of ours requires it, and
    /// replaces the same ones by what is published.
    fn build(&self, go: &Go, building: &Path, cache: &Path) -> Result<()> {
        let programs: Vec<&str> = self.names().collect();
        step(&format!("Building {} {}", programs.join(", "), self.version), || {
            let out = building.join("out");
            fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
            fs::write(building.join("go.mod"), self.go_mod(go, building)?)?;
            let packages: Vec<String> = match &self.main {
                Some(main) => {
                    fs::write(building.join("main.go"), main)?;
                    vec![".".to_owned()]
                }
                None => self.packages.iter().map(|package| self.path(package)).collect(),
            };
            let flags = format!("-s -w {}", self.ldflags);
            let file = |name: Option<&str>| out.join(name.unwrap_or_default());
            let mut build = go.command(building);
            build.env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
            build.args(["build", "-trimpath", "-ldflags", flags.trim_end(), "-o"]).arg(file(self.renamed));
            run(build.args(&packages))?;
            for name in programs {
                fs::rename(out.join(name), cache.join(name)).with_context(|| format!("go left no {name}"))?;
            }
            Ok(())
        })
    }

    fn path(&self, package: &str) -> String {
        if package.is_empty() { self.module.to_owned() } else { format!("{}/{package}", self.module) }
    }

    fn go_mod(&self, go: &Go, folder: &Path) -> Result<String> {
        let wanted = format!("{}@v{}", self.module, self.version);
        let told = output(go.command(folder).args(["mod", "download", "-json", &wanted]))?;
        let told: Value = serde_json::from_str(&told).context("go mod download printed no JSON")?;
        let file = told["GoMod"].as_str().with_context(|| format!("go knows no go.mod of {wanted}"))?;
        let theirs = fs::read_to_string(file).with_context(|| file.to_owned())?;
        let go_line = theirs.lines().find(|line| line.starts_with("go ")).unwrap_or("go 1.26");
        let mut ours = format!("module programs\n\n{go_line}\n\nrequire {} v{}\n", self.module, self.version);
        if let Some(version) = &self.staging {
            for module in replaced_by_folders(&theirs) {
                writeln!(ours, "replace {module} => {module} v{version}")?;
            }
        }
        Ok(ours)
    }
}

/// The modules that a go.mod replaces by folders beside it.
fn replaced_by_folders(go_mod: &str) -> impl Iterator<Item = &str> {
    go_mod.lines().filter_map(|line| {
        let (module, target) = line.trim_start_matches("replace").trim().split_once(" => ")?;
        target.starts_with('.').then_some(module)
    })
}

/// The machine's Go.
struct Go {
    program: PathBuf,
}

impl Go {
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(folder).env("GOFLAGS", "-buildvcs=false -mod=mod");
        command.env_remove("GOOS").env_remove("GOARCH").env("GOWORK", "off");
        // The compiler lives briefly: memory is cheaper than collecting its garbage.
        command.env("GOGC", "400");
        command
    }
}

fn go() -> Result<Go> {
    let advice = "install Go from https://go.dev/dl and put its bin folder on the PATH";
    let program = setup::find("go")
        .or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|file| file.is_file()))
        .with_context(|| {
            format!("these programs are built from source, and there is no Go here: {advice}")
        })?;
    let told = output(Command::new(&program).arg("version"))?;
    match version(&told) {
        Some(found) if found < OLDEST_GO => {
            let (major, minor) = OLDEST_GO;
            bail!("{} is too old, Go {major}.{minor} or later is needed: {advice}", told.trim_end())
        }
        _ => Ok(Go { program }),
    }
}

/// Major and minor version in what `go version` prints.
fn version(told: &str) -> Option<(u32, u32)> {
    let mut parts = told.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_are_told_from_forks() {
        let go_mod = "module m\n\ngo 1.26.0\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tx => y v1.2.3\n)\n\
                      replace go.etcd.io/etcd/api/v3 => ../api\n";
        let found: Vec<&str> = replaced_by_folders(go_mod).collect();
        assert_eq!(found, ["k8s.io/api", "go.etcd.io/etcd/api/v3"]);
    }

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert!(version("go version go1.19.8 linux/amd64").unwrap() < OLDEST_GO);
        assert_eq!(version("gibberish"), None);
    }
}
