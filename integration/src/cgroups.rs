//! Control groups of a run at the roots of every hierarchy: made, entered, and removed with the processes in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// A group of the unified tree. Dropping it kills what runs in it and removes it.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    folder: PathBuf,
}

impl Cgroup {
    /// Makes the group; its name begins as that of the run that sweeps it.
    pub fn create(name: &str) -> Result<Self> {
        let folder = unified()?.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
        Ok(Self { name: name.to_owned(), folder })
    }

    /// Its folder in the file system.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// `command`, run in this group.
    pub fn command(&self, command: &Command) -> Result<Command> {
        inside(&self.name, command)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is left is swept with the run.
        let _ = remove(&self.name);
    }
}

/// A group of whichever hierarchy has the memory controller, with a limit. Dropping it removes it; what runs in it has to have
/// ended.
#[derive(Debug)]
pub struct MemoryGroup {
    name: String,
    folder: PathBuf,
    unified: bool,
}

impl MemoryGroup {
    /// Makes the group with a limit of `bytes`; its name begins as that of the run that sweeps it.
    pub fn create(name: &str, bytes: u64) -> Result<Self> {
        let has_memory = |mount: &Mount| {
            let controllers = fs::read_to_string(mount.root.join("cgroup.controllers")).unwrap_or_default();
            mount.root.join("memory.limit_in_bytes").exists()
                || controllers.split_whitespace().any(|one| one == "memory")
        };
        let mount =
            mounts()?.into_iter().find(has_memory).context("no hierarchy has the memory controller")?;
        if mount.unified {
            delegate(&mount.root)?;
        }
        let group = Self { name: name.to_owned(), folder: mount.root.join(name), unified: mount.unified };
        fs::create_dir_all(&group.folder).with_context(|| group.folder.display().to_string())?;
        if group.unified {
            group.write("memory.max", bytes)?;
        } else {
            group.write("memory.limit_in_bytes", bytes)?;
            // Version 1 counts what sockets hold apart, and only where there is a limit for it.
            group.write("memory.kmem.tcp.limit_in_bytes", 1 << 40)?;
        }
        Ok(group)
    }

    /// The file that processes are moved by.
    pub fn entrance(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// Bytes that its processes hold, and bytes that the buffers of their sockets do, which version 2 counts among them.
    pub fn used(&self) -> Result<(u64, u64)> {
        if self.unified {
            let stat = fs::read_to_string(self.folder.join("memory.stat"))?;
            let sockets = stat.lines().find_map(|line| line.strip_prefix("sock ")).context("no sock")?;
            return Ok((self.read("memory.current")?, sockets.trim().parse()?));
        }
        let sockets = self.read("memory.kmem.tcp.usage_in_bytes")?;
        Ok((self.read("memory.usage_in_bytes")? + sockets, sockets))
    }

    fn read(&self, file: &str) -> Result<u64> {
        let path = self.folder.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim().parse().with_context(|| format!("{}: {text}", path.display()))
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // What is left is swept with the run.
        let _ = remove(&self.name);
    }
}

/// Where the kernel's one cgroup v2 tree is mounted.
pub fn unified() -> Result<PathBuf> {
    let found = mounts()?.into_iter().find(|mount| mount.unified);
    found.map(|mount| mount.root).context("no cgroup2 file system in /proc/mounts: mount one")
}

/// Makes the group `name` at the root of every hierarchy, ready for processes. Where version 1 has hierarchies of its own,
/// container runtimes use those as well.
pub fn create(name: &str) -> Result<()> {
    for mount in mounts()? {
        if mount.unified {
            delegate(&mount.root)?;
        }
        let group = mount.root.join(name);
        fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(inherited) = fs::read(mount.root.join(file))
                && !mount.unified
            {
                fs::write(group.join(file), inherited).with_context(|| group.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// A command that runs `command` in the group `name` of the unified tree, from its very first instruction.
pub fn inside(name: &str, command: &Command) -> Result<Command> {
    let group = unified()?.join(name);
    fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
    let mut moved = Command::new("sh");
    moved.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
    moved.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => moved.env(name, value),
            None => moved.env_remove(name),
        };
    }
    Ok(moved)
}

/// The processes in a group of the unified tree and in those below it.
pub fn processes(group: &Path) -> Result<Vec<i32>> {
    let list = fs::read_to_string(group.join("cgroup.procs")).with_context(|| group.display().to_string())?;
    let mut found: Vec<i32> = list.lines().filter_map(|line| line.parse().ok()).collect();
    for below in subgroups(group) {
        // One that has gone meanwhile has no processes.
        found.extend(processes(&below).unwrap_or_default());
    }
    Ok(found)
}

/// Kills what runs in the groups whose names start with `prefix`, in every hierarchy, and removes them.
pub fn remove(prefix: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<PathBuf> = mounts()?.iter().flat_map(|mount| named(&mount.root, prefix)).collect();
        if left.is_empty() {
            return Ok(());
        }
        for group in &left {
            // Only version 2 has it; there, it reaches every process that version 1 has under the same name.
            let _ = fs::write(group.join("cgroup.kill"), "1");
            remove_tree(group);
        }
        if Instant::now() > deadline {
            bail!("cgroups that cannot be removed: {left:?}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

struct Mount {
    root: PathBuf,
    unified: bool,
}

fn mounts() -> Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    Ok(parse(&table))
}

fn parse(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (root, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| Mount { root: root.into(), unified: kind == "cgroup2" })
    };
    table.lines().filter_map(mount).collect()
}

/// Lets the groups below the root have every controller that the tree has; one that cannot be had is the runtime's to miss.
fn delegate(root: &Path) -> Result<()> {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).context("cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

fn named(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the groups from the leaves up, as far as they are empty.
fn remove_tree(group: &Path) {
    for below in subgroups(group) {
        remove_tree(&below);
    }
    let _ = fs::remove_dir(group);
}

fn subgroups(group: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let table = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                     cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        let found: Vec<_> =
            parse(table).into_iter().map(|mount| (mount.root.display().to_string(), mount.unified)).collect();
        assert_eq!(
            found,
            [("/sys/fs/cgroup/cpu".to_owned(), false), ("/sys/fs/cgroup/unified".to_owned(), true)]
        );
    }
}
