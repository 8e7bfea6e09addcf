//! Follows the roots that a certificate service publishes, in a file or in a ConfigMap.

use std::{path::PathBuf, pin::pin};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use tokio::task::spawn_blocking;
use tokio_stream::StreamExt as _;
use tracing::{error, info, warn};

use crate::{
    error::with_causes,
    files::{self, ReadError, Watched},
    identity::PublishedRoots,
};

/// A larger file is not read.
const MAX_FILE: u64 = 1024 * 1024;
/// How long the server keeps a watch, in seconds; a connection that died unnoticed is given up a moment later.
const WATCH: u32 = 60;

/// Where in the API roots are published.
#[derive(Clone, Debug)]
pub(super) struct PublishedMap {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) key: String,
}

/// Keeps the roots of the file `path` in force, for ever. While it cannot be used, those read before stay.
pub(super) async fn follow_file(path: PathBuf, roots: PublishedRoots) {
    let place = path.display().to_string();
    let (file, told) = (path.clone(), place.clone());
    let read = move || {
        let content =
            files::read(&file, MAX_FILE).map_err(|error| ReadError::into_problem(error).to_string())?;
        take(&told, &content, &roots)
    };
    let complain = move |problem: &str| {
        error!(
            file = place,
            error = problem,
            "the CA's roots cannot be used; those read before stay in force"
        );
    };
    let first = spawn_blocking(move || {
        let watched = Watched::new([path]);
        let first = read();
        (first, watched, read)
    });
    // The pool refuses only while the runtime ends.
    let Ok((first, watched, read)) = first.await else { return };
    if let Err(problem) = first {
        complain(&problem);
    }
    watched.follow(read, complain).await;
}

/// Keeps the roots of a ConfigMap in force, for ever. While it is not there, or cannot be used, those read before stay.
pub(super) async fn follow_config_map(client: Client, map: PublishedMap, roots: PublishedRoots) {
    let PublishedMap { namespace, name, key } = map;
    let place = format!("{namespace}/{name}");
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let config = Config::default().fields(&format!("metadata.name={name}")).timeout(WATCH);
    let mut events = pin!(watcher(maps, config).default_backoff());
    let mut told = None;
    // A watcher's stream has no end.
    while let Some(event) = events.next().await {
        let problem = match event {
            Ok(event) => judge(&place, &key, event, &roots),
            Err(error) => Err(with_causes(&error)),
        };
        match problem {
            Ok(taken) if taken => told = None,
            Ok(_) => {}
            Err(problem) => {
                if told.as_ref() != Some(&problem) {
                    warn!(
                        config_map = place,
                        error = problem,
                        "the CA's roots cannot be read; those read before stay in force"
                    );
                }
                told = Some(problem);
            }
        }
    }
}

/// Takes what an event says of the roots; answers with whether it said something. The error says what is wrong with it.
fn judge(place: &str, key: &str, event: Event<ConfigMap>, roots: &PublishedRoots) -> Result<bool, String> {
    match event {
        Event::Apply(map) | Event::InitApply(map) => {
            let data = map.data.unwrap_or_default();
            let text = data.get(key).map_or("", String::as_str);
            let taken = take(place, text.as_bytes(), roots);
            taken.map(|()| true).map_err(|problem| format!("its key {key} {problem}"))
        }
        Event::Delete(_) => Err("it is gone; the CA makes it anew".to_owned()),
        Event::Init | Event::InitDone => Ok(false),
    }
}

fn take(place: &str, content: &[u8], roots: &PublishedRoots) -> Result<(), String> {
    if let Some(count) = roots.take(content)? {
        info!(from = place, roots = count, "the CA's roots are in force");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::identity::testing::TestCa;

    const KEY: &str = "root-cert.pem";

    fn map(text: &str) -> ConfigMap {
        let data = Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())]));
        ConfigMap { data, ..ConfigMap::default() }
    }

    #[test]
    fn events_bring_roots_and_never_take_the_last_ones_away() {
        let roots = PublishedRoots::default();
        let pem = |name| pem::encode(&pem::Pem::new("CERTIFICATE", TestCa::new(name).certificate.as_ref()));
        let (old, new) = (pem("old"), pem("new"));
        let judged = |event| judge("a/b", KEY, event, &roots);
        assert_eq!(judged(Event::Init), Ok(false));
        assert_eq!(judged(Event::InitApply(map(&format!("{old}{new}")))), Ok(true));
        assert_eq!(judged(Event::InitDone), Ok(false));
        assert!(judged(Event::Apply(map(""))).unwrap_err().contains("root-cert.pem"));
        assert!(judged(Event::Apply(ConfigMap::default())).is_err());
        assert!(judged(Event::Delete(map(&old))).is_err());
        assert_eq!(roots.take(format!("{old}{new}").as_bytes()), Ok(None), "both are in force still");
        assert_eq!(judged(Event::Apply(map(&new))), Ok(true));
        assert_eq!(roots.take(new.as_bytes()), Ok(None), "one is withdrawn");
    }

    #[tokio::test]
    async fn a_file_is_followed_from_before_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        let roots = PublishedRoots::default();
        let following = tokio::spawn(follow_file(path.clone(), roots.clone()));
        let text = pem::encode(&pem::Pem::new("CERTIFICATE", TestCa::new("ca").certificate.as_ref()));
        std::fs::write(&path, &text).unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(roots.take(text.as_bytes()), Ok(None), "taken already");
        following.abort();
    }
}
