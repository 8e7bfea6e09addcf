//! Whether this host can capture, found out by really trying: everything an agent will ask of the kernel is done once, in
//! a cgroup and a network namespace of its own, and undone. Where the cgroup tree cannot be written to, as in the agent's
//! container, the programs are tried on the cgroup that this process is in. Changes nothing that was there.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::utsname::uname,
};

use super::{filesystem, netns::Netns, process, programs, routing, socket};
use crate::error::with_causes;

/// The oldest kernel that has everything (`sk_lookup` links, `SO_NETNS_COOKIE`, `bpf_getsockopt` where it is used).
const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Capabilities (linux/capability.h) and what they are for.
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "sets rules, routes and transparent sockets"),
    (13, "CAP_NET_RAW", "answers applications' connects once it is known what is to be answered"),
    (19, "CAP_SYS_PTRACE", "finds pods' network namespaces by their processes"),
    (21, "CAP_SYS_ADMIN", "loads programs, enters pods' network namespaces"),
];

/// One thing that was looked at.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What, in a word or two.
    pub(crate) what: &'static str,
    /// How it is.
    pub(crate) verdict: Verdict,
}

/// How something is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// There; with a detail.
    Good(String),
    /// Not needed, or not yet; what follows from that.
    Note(String),
    /// The agent cannot work; why, and what to do.
    Bad(String),
}

/// Tries everything that capture needs. Must run on a thread without siblings in another namespace; takes well under a
/// second.
pub(crate) fn check_host(bpf_root: &Path, cgroup_root: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![
        finding("kernel", kernel()),
        finding("capabilities", capabilities()),
        Finding { what: "bpf file system", verdict: bpffs(bpf_root) },
    ];
    let cgroup = filesystem::cgroup_root(cgroup_root);
    findings.push(finding(
        "cgroup v2",
        cgroup.as_ref().map(|path| path.display().to_string()).map_err(ToString::to_string),
    ));
    findings.push(finding(
        "sysctls",
        filesystem::ensure_sysctls().map(|()| "writable".to_owned()).map_err(|error| {
            format!(
                "{error}: in a container, CAP_SYS_ADMIN and an AppArmor profile that allows mount are needed"
            )
        }),
    ));
    let tried = thread::spawn(move || try_in_namespace(cgroup.ok())).join();
    findings.extend(
        tried.unwrap_or_else(|_| vec![finding("network namespace", Err("the check itself failed".into()))]),
    );
    findings
}

fn finding(what: &'static str, result: Result<String, String>) -> Finding {
    Finding { what, verdict: result.map_or_else(Verdict::Bad, Verdict::Good) }
}

fn kernel() -> Result<String, String> {
    let name = uname().map_err(|errno| errno.to_string())?;
    let release = name.release().to_string_lossy().into_owned();
    let wanted = format!("Linux {}.{} or later is needed", OLDEST_KERNEL.0, OLDEST_KERNEL.1);
    match version(&release) {
        Some(version) if version >= OLDEST_KERNEL => Ok(format!("Linux {release}")),
        Some(_) => Err(format!("this is Linux {release}; {wanted}")),
        None => Err(format!("{release:?} tells no version; {wanted}")),
    }
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capabilities() -> Result<String, String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let held = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .ok_or("/proc/self/status names no capabilities")?;
    let lacking: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| held >> bit & 1 == 0)
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    if lacking.is_empty() {
        return Ok(CAPABILITIES.map(|(_, name, _)| name).join(", "));
    }
    Err(format!("lacking {}; run as root, or give the container these", lacking.join(", ")))
}

/// In a container the file system must be the host's: what is pinned in one of the container's own goes with it, and would
/// leave pods open.
fn bpffs(root: &Path) -> Verdict {
    let shown = root.display();
    if filesystem::is_bpffs(root) {
        return match fs::DirBuilder::new().mode(0o700).create(root.join("ambit-check")) {
            Ok(()) => {
                let _: io::Result<()> = fs::remove_dir(root.join("ambit-check"));
                Verdict::Good(shown.to_string())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Verdict::Good(shown.to_string()),
            Err(error) => Verdict::Bad(format!("{shown} cannot be written to: {error}")),
        };
    }
    let namespace =
        |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt")).map(|file| file.ino()).ok();
    if namespace("self") == namespace("1") {
        return Verdict::Note(format!("not mounted at {shown}; the agent mounts it"));
    }
    Verdict::Bad(format!(
        "{shown} of this node is no BPF file system; on the node: mount -t bpf bpf {shown} (and an entry in /etc/fstab)"
    ))
}

/// In a new network namespace, which ends with the calling thread.
fn try_in_namespace(cgroup_root: Option<PathBuf>) -> Vec<Finding> {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        return vec![finding(
            "network namespace",
            Err(format!("cannot make one: {errno}; CAP_SYS_ADMIN is needed")),
        )];
    }
    let netns = match Netns::open(Path::new("/proc/thread-self/ns/net")) {
        Ok(netns) => netns,
        Err(error) => {
            return vec![finding(
                "network namespace",
                Err(format!("cannot enter one, or learn its cookie: {error}")),
            )];
        }
    };
    let text = |error: io::Error| error.to_string();
    let mut findings = vec![
        finding("network namespace", Ok(format!("entered, cookie {}", netns.cookie()))),
        finding(
            "transparent sockets",
            socket::transparent(false)
                .and_then(|socket| socket::bind_delivery(&socket, (Ipv4Addr::new(192, 0, 2, 1), 0).into(), 0))
                .map(|_| "bound".to_owned())
                .map_err(text),
        ),
        finding("rules and routes", rules(&netns).map_err(text)),
    ];
    if let Some(root) = cgroup_root {
        findings.push(finding("programs", attach(&root, &netns)));
    }
    findings
}

fn rules(netns: &Netns) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let v6 = netns.run(|| Ok(Path::new("/proc/sys/net/ipv6").exists()))?;
    runtime.block_on(async {
        routing::loopback_up(netns).await?;
        routing::prepare(netns, true, v6).await
    })?;
    Ok(if v6 { "set, IPv4 and IPv6" } else { "set, IPv4; the kernel has no IPv6" }.to_owned())
}

fn attach(root: &Path, netns: &Netns) -> Result<String, String> {
    let place = match Scratch::below(root) {
        Ok(scratch) => Place::Made(scratch),
        Err(error) => own_group(root).map(Place::Own).ok_or_else(|| {
            format!(
                "cannot make a cgroup in {}: {error}; and this process is in none below it",
                root.display()
            )
        })?,
    };
    let path = place.path();
    // All that attaching asks of it.
    let cgroup = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let tried = programs::rehearse(&cgroup, netns.as_fd()).map_err(|error| error.to_string())?;
    let count = tried.len();
    let failed: Vec<String> =
        tried.into_iter().filter_map(|(_, result)| result.err().map(|error| with_causes(&error))).collect();
    if failed.is_empty() { Ok(format!("{count} loaded and attached")) } else { Err(failed.join("; ")) }
}

/// A cgroup to try the programs on.
enum Place {
    Made(Scratch),
    Own(PathBuf),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Made(scratch) => &scratch.0,
            Self::Own(path) => path,
        }
    }
}

/// The cgroup that this process is in, if that is not the root. In a cgroup namespace of its own the process finds it where its
/// container runtime mounts it, else below `root`.
fn own_group(root: &Path) -> Option<PathBuf> {
    let pid = std::process::id();
    let path = process::cgroup(pid)?;
    let below = |root: &Path| root.join(path.trim_start_matches('/'));
    let places = [below(root), below(Path::new("/sys/fs/cgroup"))];
    let holds = |group: &PathBuf| {
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        listed.lines().any(|line| line.parse() == Ok(pid))
    };
    // The root of the hierarchy alone has no type.
    places.into_iter().find(|group| holds(group) && group.join("cgroup.type").exists())
}

/// A cgroup of our own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    /// One below the root of the hierarchy; or below one of its groups, where the root takes CAP_DAC_OVERRIDE to write to.
    fn below(root: &Path) -> io::Result<Self> {
        let new = |parent: &Path| {
            let path = parent.join(format!("ambit-check-{}", std::process::id()));
            fs::create_dir(&path).map(|()| Self(path))
        };
        let groups = || fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        new(root).or_else(|error| groups().find_map(|group| new(&group).ok()).ok_or(error))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _: io::Result<()> = fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_tell_their_version() {
        for (release, expected) in [
            ("6.1.0-18-amd64", Some((6, 1))),
            ("5.15.0", Some((5, 15))),
            ("6.18-rc1+", Some((6, 18))),
            ("10.0", Some((10, 0))),
            ("linux", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn a_folder_that_is_no_hierarchy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let findings = check_host(dir.path(), Some(dir.path()));
        let of = |what| &findings.iter().find(|finding| finding.what == what).unwrap().verdict;
        assert!(matches!(of("cgroup v2"), Verdict::Bad(why) if why.contains("--cgroup-root")));
        assert!(matches!(of("bpf file system"), Verdict::Note(_) | Verdict::Bad(_)));
        assert!(matches!(of("kernel"), Verdict::Good(_)));
        assert!(
            !findings.iter().any(|finding| finding.what == "programs"),
            "without a hierarchy nothing is attached"
        );
    }
}
