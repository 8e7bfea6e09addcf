//! How long steps took the last time, in the user's cache: what to expect this time.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::Result;

use crate::setup;

/// Steps shorter than this are not worth a word.
const SHORT: Duration = Duration::from_secs(5);

/// How long the step `what` took the last time, if that was long enough to wonder.
pub(crate) fn last(what: &str) -> Option<Duration> {
    let seconds = *read().ok()?.get(what)?;
    Some(Duration::from_secs(seconds)).filter(|took| *took >= SHORT)
}

/// Keeps how long the step `what` took. A cache that cannot be written is no reason to fail.
pub(crate) fn keep(what: &str, took: Duration) {
    let kept = || -> Result<()> {
        let mut times = read().unwrap_or_default();
        times.insert(what.to_owned(), took.as_secs());
        let (file, fresh) = (file()?, file()?.with_extension("new"));
        fs::create_dir_all(setup::cache()?)?;
        fs::write(&fresh, serde_json::to_vec_pretty(&times)?)?;
        Ok(fs::rename(fresh, file)?)
    };
    let _ = kept();
}

/// Minutes and seconds.
pub(crate) fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 { format!("{seconds} s") } else { format!("{} min {:02} s", seconds / 60, seconds % 60) }
}

fn read() -> Result<BTreeMap<String, u64>> {
    Ok(serde_json::from_slice(&fs::read(file()?)?)?)
}

fn file() -> Result<PathBuf> {
    Ok(setup::cache()?.join("times.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_one_would_say_them() {
        assert_eq!(shown(Duration::from_millis(7_900)), "7 s");
        assert_eq!(shown(Duration::from_secs(125)), "2 min 05 s");
    }
}
