//! Files that others write: notices when they have changed and are left alone again, and takes them in anew.
//!
//! Looks instead of being told, so that links (Kubernetes swaps mounted volumes by one), files that come and go, and every
//! file system are the same.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::stamp::Stamp;

/// How often the files are looked at. A change counts once two looks in a row have seen the same.
const LOOK: Duration = Duration::from_millis(500);
/// How long files that were of no use are left alone before they are tried again although nobody has changed them: the
/// clock, or a file system, may have come right.
const RETRY: Duration = Duration::from_secs(5);

/// A set of files and how they looked when they were last taken in.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

impl Watched {
    /// Watches `paths` from how they look now: call it before reading them, so that a change in between is read once more.
    /// Symbolic links are followed.
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

    /// Takes the files in by `take` whenever they have changed; never ends. `take` may block. Whoever calls keeps what was
    /// good; `complain` hears why files are of no use, once and not at every attempt.
    pub(crate) async fn follow(
        mut self,
        take: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        complain: impl Fn(&str),
    ) {
        let take = Arc::new(take);
        let mut told: Option<String> = None;
        loop {
            match &told {
                None => self.changed().await,
                Some(_) => {
                    let _unchanged = timeout(RETRY, self.changed()).await;
                }
            }
            let taking = take.clone();
            let outcome = match spawn_blocking(move || taking()).await {
                Ok(outcome) => outcome,
                Err(panicked) if panicked.is_panic() => Err("reading it failed internally".to_owned()),
                // The runtime ends.
                Err(_) => return,
            };
            match outcome {
                Ok(()) => told = None,
                Err(problem) => {
                    if told.as_ref() != Some(&problem) {
                        complain(&problem);
                    }
                    told = Some(problem);
                }
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        path::Path,
        sync::{Mutex, mpsc},
    };

    use super::*;

    #[tokio::test]
    async fn writes_replacements_modes_and_removals_are_seen_and_nothing_else() {
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
            |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap(),
            |path: &Path| fs::remove_file(path).unwrap(),
        ] {
            change(&path);
            timeout(LOOK * 8, watched.changed()).await.expect("the change is seen");
        }
    }

    #[tokio::test]
    async fn what_was_good_is_kept_and_a_problem_is_told_once_and_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "first").unwrap();
        let watched = Watched::new([path.clone()]);
        let kept = Arc::new(Mutex::new("first".to_owned()));
        let (tell, told) = mpsc::channel();
        let (file, keep) = (path.clone(), kept.clone());
        let take = move || match fs::read_to_string(&file).map_err(|error| error.to_string())? {
            text if text.starts_with("bad") => Err("bad".to_owned()),
            text => {
                *keep.lock().unwrap() = text;
                Ok(())
            }
        };
        let following =
            tokio::spawn(watched.follow(take, move |problem| tell.send(problem.to_owned()).unwrap()));
        for (text, expected) in
            [("second", "second"), ("bad", "second"), ("bad as well", "second"), ("third", "third")]
        {
            fs::write(&path, text).unwrap();
            sleep(LOOK * 4).await;
            assert_eq!(*kept.lock().unwrap(), expected, "{text}");
        }
        following.abort();
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["bad"]);
    }
}
