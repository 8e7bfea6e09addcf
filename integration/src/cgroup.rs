//! Control groups of the v2 hierarchy, for what has to run in one of its own.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A control group below the root of the hierarchy. Dropping it removes it, once what ran in it has ended.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
}

impl Cgroup {
    /// Makes the group; its name begins as that of the run that sweeps it.
    pub fn create(name: &str) -> Result<Self> {
        let folder = root()?.join(name);
        fs::create_dir(&folder).with_context(|| format!("cannot make the cgroup {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Its folder in the file system.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// `command`, run in this group.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.folder.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes leave their group a moment after they have been waited for.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes the groups below the hierarchy's root whose names begin with `prefix`; nothing runs in them any more.
pub fn sweep(prefix: &str) -> Result<()> {
    for entry in fs::read_dir(root()?).context("the cgroup hierarchy")?.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(OsStr::new(prefix).as_encoded_bytes()) {
            fs::remove_dir(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// Where cgroup v2 is mounted.
fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    found.context("no cgroup v2 hierarchy is mounted")
}
