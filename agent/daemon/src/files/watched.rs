//! Files that others write: notices when they have changed and are left alone again.
//!
//! Looks instead of being told, so that links (Kubernetes swaps mounted volumes by one), files that come and go, and every
//! file system are the same. Leaves what is in the files to others.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

/// How often the files are looked at. A change counts once two looks in a row have seen the same.
const LOOK: Duration = Duration::from_millis(500);

/// A set of files and how they looked when they were last taken in.
#[derive(Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Look>,
}

/// What tells a file from what it was before; `None` where there is none.
type Look = Option<(u64, u64, u64, i64, i64)>;

impl Watched {
    /// Watches `paths` from how they look now: call it before reading them. Symbolic links are followed.
    pub(crate) fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Vec<_> = paths.into_iter().collect();
        let seen = look(&paths);
        Self { paths, seen }
    }

    /// Waits until a file differs from what was last seen, and then until all of them stand still. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        let mut before = self.seen.clone();
        loop {
            sleep(LOOK).await;
            let paths = self.paths.clone();
            // The pool refuses only while the runtime ends.
            let Ok(now) = spawn_blocking(move || look(&paths)).await else { return };
            if now != self.seen && now == before {
                self.seen = now;
                return;
            }
            before = now;
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Look> {
    paths.iter().map(|path| look_at(path)).collect()
}

fn look_at(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn writes_replacements_and_removals_are_seen_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "1").unwrap();
        let mut watched = Watched::new([path.clone(), dir.path().join("missing")]);
        assert!(timeout(LOOK * 3, watched.changed()).await.is_err(), "nothing happened");
        for change in [
            |path: &Path| fs::write(path, "22").unwrap(),
            |path: &Path| {
                fs::write(path.with_extension("new"), "33").unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            },
            |path: &Path| fs::remove_file(path).unwrap(),
        ] {
            change(&path);
            timeout(LOOK * 8, watched.changed()).await.expect("the change is seen");
        }
    }
}
