//! What `test --peers` tries ambit against: SPIRE, istiod, Open Policy Agent, an OpenID provider and Jaeger out of their published
//! Go modules, promtool out of Debian's package, in caches that outlive the workspace.
//!
//! Versions are fixed here and are part of the cache folder's name; promtool's is the one that apt knows.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    build,
    golang::{self, Source},
    harness::Call,
    kube, setup,
    workspace::{self, run, step},
};

const SPIRE: &str = "1.13.3";
/// Istio publishes its modules by commit: this one is of August 2026.
const ISTIO: &str = "0.0.0-20260827124520-eed52ebb66ad";
const OPA: &str = "1.22.3";
const OPENID: &str = "3.52.0";
const JAEGER: &str = "1.76.0";
const PROMTOOL: &str = "promtool";

/// What the tests put to the test, and what they try it with.
pub(crate) struct Kit {
    daemon: PathBuf,
    /// The folder of `spire-server`, `spire-agent`, `pilot-discovery` and `promtool`.
    programs: PathBuf,
    /// The folder of `opa` and `opa-ext-authz`.
    opa: PathBuf,
    /// The folder of `openid-issuer`.
    openid: PathBuf,
    /// The folder of Jaeger's `all-in-one`.
    jaeger: PathBuf,
    /// The folder of Kubernetes' programs.
    kube: PathBuf,
    /// The alert rules, as they are deployed.
    alerts: PathBuf,
}

impl Kit {
    /// A call that is given it.
    pub(crate) fn call(&self, call: Call) -> Call {
        let call = call.value("--binary", &self.daemon).value("--programs", &self.programs);
        let call = call.value("--opa-programs", &self.opa).value("--openid-programs", &self.openid);
        let call = call.value("--jaeger-programs", &self.jaeger);
        call.value("--kube-programs", &self.kube).value("--alerts", &self.alerts)
    }
}

/// Makes sure of every program; returns their folder.
pub(crate) fn programs() -> Result<PathBuf> {
    setup::peer_programs()?;
    let cache = cache()?;
    golang::programs(&cache, &sources(), "Building SPIRE and istiod (once, many minutes)")?;
    if !cache.join(PROMTOOL).is_file() {
        step("Fetching promtool out of Debian's package prometheus (once, 19 MB)", || promtool(&cache))?;
    }
    Ok(cache)
}

/// The kit for `binary`, or for the finished daemon.
pub(crate) fn kit(binary: Option<&Path>) -> Result<Kit> {
    let (programs, opa, openid) = (programs()?, opa()?, openid()?);
    let (jaeger, kube) = (jaeger()?, kube::programs()?);
    let alerts = workspace::root().join("deploy/alerts/ambit.yaml");
    let alerts = alerts.canonicalize().with_context(|| alerts.display().to_string())?;
    Ok(Kit { daemon: build::daemon_or(binary)?, programs, opa, openid, jaeger, kube, alerts })
}

/// Makes sure of Open Policy Agent, by itself and behind Envoy's API; returns their folder.
fn opa() -> Result<PathBuf> {
    setup::peer_programs()?;
    let cache = setup::cache()?.join(format!("opa-{OPA}"));
    let program = |name, main| Source {
        module: "github.com/open-policy-agent/opa",
        version: OPA,
        packages: &[""],
        renamed: Some(name),
        main,
        ..Source::default()
    };
    let behind_envoys = include_str!("opa.go").to_owned();
    let sources = [program("opa", None), program("opa-ext-authz", Some(behind_envoys))];
    golang::programs(&cache, &sources, "Building Open Policy Agent (once, some minutes)")?;
    Ok(cache)
}

/// Makes sure of an OpenID provider whose keys change when they are told to; returns its folder.
fn openid() -> Result<PathBuf> {
    setup::peer_programs()?;
    let cache = setup::cache()?.join(format!("openid-{OPENID}"));
    let provider = Source {
        module: "github.com/zitadel/oidc/v3",
        version: OPENID,
        packages: &[""],
        renamed: Some("openid-issuer"),
        main: Some(include_str!("openid.go").to_owned()),
        ..Source::default()
    };
    golang::programs(&cache, &[provider], "Building an OpenID provider (once, half a minute)")?;
    Ok(cache)
}

/// Makes sure of Jaeger, which holds traces in memory; returns its folder.
fn jaeger() -> Result<PathBuf> {
    setup::peer_programs()?;
    let cache = setup::cache()?.join(format!("jaeger-{JAEGER}"));
    let program = Source {
        module: "github.com/jaegertracing/jaeger",
        version: JAEGER,
        packages: &["cmd/all-in-one"],
        ..Source::default()
    };
    golang::programs(&cache, &[program], "Building Jaeger (once, some minutes)")?;
    Ok(cache)
}

fn sources() -> [Source; 2] {
    [
        Source {
            module: "github.com/spiffe/spire",
            version: SPIRE,
            packages: &["cmd/spire-server", "cmd/spire-agent"],
            // The server's database is sqlite.
            cgo: true,
            ..Source::default()
        },
        Source {
            module: "istio.io/istio",
            version: ISTIO,
            packages: &["pilot/cmd/pilot-discovery"],
            ..Source::default()
        },
    ]
}

/// Takes promtool out of the package, without installing it: the package would start a server.
fn promtool(cache: &Path) -> Result<()> {
    let place = cache.join("prometheus");
    setup::remove(&place)?;
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let apt = |arguments: &[&str]| run(setup::apt_get().args(arguments).current_dir(&place));
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", "prometheus"];
    // Servers drop packages that lists from long ago still name.
    apt(&download).or_else(|_| apt(&["-q", "update"]).and_then(|()| apt(&download)))?;
    let package = fs::read_dir(&place)?.flatten().map(|entry| entry.path()).next();
    let package = package.context("apt-get download left no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&place))?;
    fs::rename(place.join("usr/bin").join(PROMTOOL), cache.join(PROMTOOL))
        .with_context(|| format!("no {PROMTOOL} in {}", package.display()))?;
    setup::remove(&place)
}

/// Where the programs of exactly these versions are.
fn cache() -> Result<PathBuf> {
    let istio = ISTIO.rsplit_once('-').map_or(ISTIO, |(_, commit)| commit);
    Ok(setup::cache()?.join(format!("peers-spire-{SPIRE}-istio-{istio}")))
}
