//! The programs of a real Kubernetes, built from their published Go modules into a cache that outlives the workspace.
//!
//! Versions are fixed here and are part of the cache folder's name. A program appears in it whole or not at all.

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
    harness::Kit,
    image, setup,
    workspace::{self, output, run, step},
};

const KUBERNETES: &str = "1.36.3";
const ETCD: &str = "3.7.3";
const COREDNS: &str = "1.14.7";
const CONTAINERD: &str = "2.3.7";
const CNI_PLUGINS: &str = "1.9.1";
const HELM: &str = "3.22.0";

/// The first Go that fetches, by itself, the toolchain that a module asks for.
const OLDEST_GO: (u32, u32) = (1, 21);

/// Programs that come out of one module.
struct Source {
    module: &'static str,
    version: &'static str,
    /// The version of the module's own staging modules, where it replaces them by folders that are not published with it.
    staging: Option<String>,
    /// Packages below the module; the last part of each is the program's name, unless `renamed` says otherwise.
    packages: &'static [&'static str],
    renamed: Option<&'static str>,
    /// A main package of ours in place of the module's, where that holds far more than a cluster needs.
    main: Option<String>,
    ldflags: String,
}

/// Makes sure of every program, and of the Debian packages that a cluster needs beside them; returns the programs' folder.
pub(crate) fn programs() -> Result<PathBuf> {
    setup::kube_programs()?;
    let cache = cache()?;
    let missing = |source: &Source| source.names().any(|name| !cache.join(name).is_file());
    if sources().iter().any(missing) {
        let go = go()?;
        step(
            "Building Kubernetes, etcd, CoreDNS, containerd, CNI plugins and Helm (once, about eight minutes)",
            || {
                fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
                let lock = File::create(cache.join("build.lock")).context("the lock of the cache folder")?;
                let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
                let building = cache.join("building");
                for source in sources().iter().filter(|source| missing(source)) {
                    // What a build that was killed has left is nobody's: this process has the lock.
                    setup::remove(&building)?;
                    source.build(&go, &building, &cache)?;
                }
                setup::remove(&building)
            },
        )?;
    }
    Ok(cache)
}

/// What the tests on a cluster put to the test: the chart, and an image that is given, or made of a binary.
pub(crate) fn kit(image: Option<&Path>, binary: Option<&Path>) -> Result<Kit> {
    let programs = programs()?;
    let image = match image {
        Some(image) => image.canonicalize().with_context(|| image.display().to_string())?,
        None => image::of(binary)?,
    };
    let chart = workspace::root().join("deploy/charts/ambit");
    let chart = chart.canonicalize().with_context(|| chart.display().to_string())?;
    Ok(Kit { programs, chart, image })
}

fn sources() -> [Source; 6] {
    let minor = KUBERNETES.trim_start_matches("1.");
    let version = "k8s.io/component-base/version";
    let kubernetes = format!(
        "-X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor=1 -X {version}.gitMinor={}",
        minor.split('.').next().unwrap_or_default()
    );
    let plain = |module, version, packages| Source {
        module,
        version,
        staging: None,
        packages,
        renamed: None,
        main: None,
        ldflags: String::new(),
    };
    [
        Source {
            staging: Some(format!("0.{minor}")),
            ldflags: kubernetes,
            ..plain(
                "k8s.io/kubernetes",
                KUBERNETES,
                &[
                    "cmd/kube-apiserver",
                    "cmd/kube-controller-manager",
                    "cmd/kube-scheduler",
                    "cmd/kubelet",
                    "cmd/kube-proxy",
                    "cmd/kubectl",
                ],
            )
        },
        Source {
            staging: Some(ETCD.to_owned()),
            renamed: Some("etcd"),
            ..plain("go.etcd.io/etcd/server/v3", ETCD, &[""])
        },
        Source {
            renamed: Some("coredns"),
            main: Some(coredns_main()),
            ..plain("github.com/coredns/coredns", COREDNS, &[""])
        },
        plain(
            "github.com/containerd/containerd/v2",
            CONTAINERD,
            &["cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"],
        ),
        plain(
            "github.com/containernetworking/plugins",
            CNI_PLUGINS,
            &["plugins/main/ptp", "plugins/main/loopback", "plugins/ipam/host-local"],
        ),
        plain("helm.sh/helm/v3", HELM, &["cmd/helm"]),
    ]
}

impl Source {
    fn names(&self) -> impl Iterator<Item = &str> {
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
            let (file, text, packages) = match &self.main {
                Some(main) => ("main.go", main.clone(), vec![".".to_owned()]),
                None => {
                    let packages: Vec<String> =
                        self.packages.iter().map(|package| self.path(package)).collect();
                    ("programs.go", programs_go(&packages), packages)
                }
            };
            fs::write(building.join(file), text)?;
            output(go.command(building).args(["mod", "tidy"]))?;
            let flags = format!("-s -w {}", self.ldflags);
            let file = |name: Option<&str>| out.join(name.unwrap_or_default());
            let mut build = go.command(building);
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

/// CoreDNS with the plugins that the cluster's configuration names. With all that it can have it takes three times as long.
fn coredns_main() -> String {
    let module = "github.com/coredns/coredns";
    let plugins =
        ["bind", "cache", "kubernetes"].map(|name| format!("import _ \"{module}/plugin/{name}\"\n"));
    format!(
        "package main\n\nimport \"{module}/coremain\"\n{}\nfunc main() {{ coremain.Run() }}\n",
        plugins.concat()
    )
}

/// A file that names the packages, so that `go mod tidy` keeps what they need.
fn programs_go(packages: &[String]) -> String {
    let mut text = "//go:build programs\n\npackage programs\n\n".to_owned();
    for package in packages {
        text += &format!("import _ \"{package}\"\n");
    }
    text
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
        command.current_dir(folder).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false -mod=mod");
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
            format!("a real Kubernetes is built from source, and there is no Go here: {advice}")
        })?;
    let told = output(Command::new(&program).arg("version"))?;
    match version(&told) {
        Some(found) if found < OLDEST_GO => {
            let (major, minor) = OLDEST_GO;
            bail!("{} is too old, Kubernetes needs Go {major}.{minor} or later: {advice}", told.trim_end())
        }
        _ => Ok(Go { program }),
    }
}

/// Major and minor version in what `go version` prints.
fn version(told: &str) -> Option<(u32, u32)> {
    let mut parts = told.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where the programs of exactly these versions are.
fn cache() -> Result<PathBuf> {
    let parts = [
        ("etcd", ETCD),
        ("coredns", COREDNS),
        ("containerd", CONTAINERD),
        ("cni", CNI_PLUGINS),
        ("helm", HELM),
    ];
    let parts: String = parts.iter().map(|(name, version)| format!("-{name}-{version}")).collect();
    Ok(setup::cache()?.join(format!("kube-{KUBERNETES}{parts}")))
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
    fn programs_are_named_after_their_packages() {
        let names: Vec<String> = sources()
            .iter()
            .flat_map(|source| source.names().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert!(
            ["kubelet", "etcd", "coredns", "ctr", "ptp", "helm"]
                .iter()
                .all(|name| names.contains(&(*name).to_owned()))
        );
    }

    #[test]
    fn versions_of_go_are_read() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert!(version("go version go1.19.8 linux/amd64").unwrap() < OLDEST_GO);
        assert_eq!(version("gibberish"), None);
    }
}
