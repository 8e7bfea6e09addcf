//! Debian's kernels in a cache that outlives the workspace: which one is the newest of a series, and fetching it.
//!
//! A kernel appears in the cache whole or not at all. No network is asked while the newest that apt knows is there.

use std::{
    fmt,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    setup,
    workspace::{output, run, step},
};

/// A series of Linux, such as 6.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Series(String);

/// A kernel of Debian's in the cache: `vmlinuz`, and its modules in `lib/modules`.
pub(crate) struct Kernel {
    /// As `uname -r` prints it; packages are named after it.
    pub(crate) release: String,
    /// Where it is.
    pub(crate) folder: PathBuf,
}

impl Kernel {
    /// The newest kernel of the series that apt knows, or that is there where apt knows none.
    pub(crate) fn newest(series: &Series) -> Result<Self> {
        let cache = setup::cache()?.join("kernels");
        let known = || {
            let pattern = format!("^linux-image-{}[.]", series.0.replace('.', "[.]"));
            let told = output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))
                .context("kernels are taken from Debian's packages")?;
            anyhow::Ok(newest(series, releases(&told)).map(|release| Self::at(&cache, release)))
        };
        let kept: Vec<String> = fs::read_dir(&cache)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let kept = newest(series, kept.iter().map(String::as_str)).map(|release| Self::at(&cache, release));
        // Servers drop packages that lists from long ago still name.
        if let Some(kernel) = known()?.or(kept)
            && kernel.fetch(&cache).is_ok()
        {
            return Ok(kernel);
        }
        step("Updating apt's lists of packages", || run(setup::apt_get().arg("update")))?;
        let kernel = known()?.with_context(|| {
            format!(
                "apt knows no package linux-image-{series}.*-amd64: add a release of Debian that has Linux {series} to apt's \
                 sources, or name another series"
            )
        })?;
        kernel.fetch(&cache)?;
        Ok(kernel)
    }

    fn at(cache: &Path, release: &str) -> Self {
        Self { release: release.to_owned(), folder: cache.join(release) }
    }

    /// Makes sure that it is in the cache.
    fn fetch(&self, cache: &Path) -> Result<()> {
        if self.folder.is_dir() {
            return Ok(());
        }
        step(&format!("Fetching Debian's kernel {} (once, about 100 MB)", self.release), || {
            fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
            let lock = File::create(cache.join("lock")).context("the lock of the cache folder")?;
            let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // What one that was killed has left is nobody's: this process has the lock.
            let building = cache.join("building");
            setup::remove(&building)?;
            if !self.folder.is_dir() {
                self.unpack(&building)?;
                fs::rename(building.join("kernel"), &self.folder)?;
            }
            setup::remove(&building)
        })
    }

    /// Downloads the package into the folder `building` and makes `kernel` in it.
    fn unpack(&self, building: &Path) -> Result<()> {
        let Self { release, .. } = self;
        let (files, kernel) = (building.join("files"), building.join("kernel"));
        fs::create_dir_all(&files)?;
        fs::create_dir_all(kernel.join("lib"))?;
        let mut download = setup::apt_get();
        download.args(["-q", "-o", "APT::Sandbox::User=root", "download", &format!("linux-image-{release}")]);
        run(download.current_dir(building))?;
        let package = fs::read_dir(building)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
            .context("apt-get download left no package")?;
        run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&files))?;
        fs::rename(files.join("boot").join(format!("vmlinuz-{release}")), kernel.join("vmlinuz"))
            .with_context(|| format!("no vmlinuz-{release} in {}", package.display()))?;
        // Later releases of Debian have no /lib of their own.
        let modules = ["lib/modules", "usr/lib/modules"].map(|folder| files.join(folder));
        let modules = modules.into_iter().find(|folder| folder.join(release).is_dir());
        let modules = modules.with_context(|| format!("no modules in {}", package.display()))?;
        fs::rename(modules, kernel.join("lib/modules"))?;
        symlink(".", kernel.join("usr"))?;
        run(setup::program("depmod").arg("-b").arg(&kernel).arg(release))
    }
}

/// The kernels in the answer of `apt-cache search`, whatever their flavour.
fn releases(told: &str) -> impl Iterator<Item = &str> {
    told.lines().filter_map(|line| line.split_whitespace().next()?.strip_prefix("linux-image-"))
}

/// The newest of `releases` that is of the series, and neither a flavour nor a package that only belongs to one.
fn newest<'a>(series: &Series, releases: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let is_plain = |release: &&str| {
        let rest = release.strip_suffix("-amd64").and_then(|rest| rest.strip_prefix(series.0.as_str()));
        rest.and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| {
            rest.split('-').all(|part| part.starts_with(|first: char| first.is_ascii_digit()))
        })
    };
    let numbers = |release: &&str| -> Vec<u64> {
        release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    releases.filter(is_plain).max_by_key(numbers)
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        match text.split_once('.') {
            Some((major, minor)) if is_number(major) && is_number(minor) => Ok(Self(text.to_owned())),
            _ => Err("a series of Linux is two numbers, as 6.1".to_owned()),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(text: &str) -> Series {
        text.parse().unwrap()
    }

    #[test]
    fn the_newest_plain_kernel_of_a_series_is_chosen() {
        let told = "linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                    linux-image-6.1.0-56-amd64 - Linux 6.1 for 64-bit PCs (signed)\n\
                    linux-image-6.1.0-57-amd64-unsigned - Linux 6.1 for 64-bit PCs\n\
                    linux-image-6.1.0-57-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)\n\
                    linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)\n\
                    linux-image-6.12.9+bpo-amd64 - Linux 6.12 for 64-bit PCs (signed)\n\
                    linux-image-6.12.117+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)\n\
                    linux-image-6.12.117+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs (signed), PREEMPT_RT\n";
        let newest = |text| newest(&series(text), releases(told));
        assert_eq!(newest("6.1"), Some("6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("6.12.117+deb12-amd64"));
        assert_eq!(newest("6.11"), None);
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for text in ["", "6", "6.", "6.1.0", "6.x", "6.1-amd64"] {
            assert!(text.parse::<Series>().is_err(), "{text}");
        }
    }
}
