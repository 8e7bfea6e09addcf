//! What the plugin decides by itself while no agent can: from the API's labels, else from the state that the agent left.
//!
//! | API answers | state file | pod |
//! |---|---|---|
//! | it opts in | any | waits |
//! | it does not opt in | any | starts |
//! | no | lists its namespace | waits, even if its own label opts it out |
//! | no | does not list it, or is not there | starts, even if its own label opts it in |

use std::path::Path;

use ambit_core::discovery::Settings;

use super::{api, protocol::PodRef, state::State};

/// What is to become of a pod that no agent can enrol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It starts as if there were no mesh.
    Pass,
    /// It must not start yet, and why.
    Wait(String),
}

/// The verdict by what is known in the folder `dir`. Takes as long as [`api::LIMIT`] at most.
pub(super) fn decide(dir: &Path, pod: &PodRef) -> Verdict {
    let state = State::read(dir).ok();
    match api::labels(dir, pod) {
        Ok(labels) => {
            let by_default = || State::new(&Settings::default(), []);
            let state = state.unwrap_or_else(by_default);
            judge(state.opts_in(labels.namespace.as_ref(), labels.pod.as_ref()), "its labels say so")
        }
        Err(error) => {
            let listed = state.is_some_and(|state| state.namespaces.contains(&pod.namespace));
            judge(listed, &format!("its namespace opted in when the agent last ran ({error})"))
        }
    }
}

/// Whether there is anything to decide by in `dir`; the reason if not.
pub(super) fn can_decide(dir: &Path) -> Result<(), String> {
    State::read(dir).map(drop).map_err(|error| error.to_string())
}

fn judge(opts_in: bool, because: &str) -> Verdict {
    if opts_in { Verdict::Wait(because.to_owned()) } else { Verdict::Pass }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_api_only_listed_namespaces_wait() {
        let dir = tempfile::tempdir().unwrap();
        let pod = |namespace: &str| PodRef { namespace: namespace.into(), name: "p".into(), uid: None };
        assert!(can_decide(dir.path()).is_err());
        assert_eq!(decide(dir.path(), &pod("shop")), Verdict::Pass);
        State::new(&Settings::default(), ["shop".to_owned()]).write(dir.path()).unwrap();
        assert!(can_decide(dir.path()).is_ok());
        assert!(matches!(decide(dir.path(), &pod("shop")), Verdict::Wait(_)));
        assert_eq!(decide(dir.path(), &pod("legacy")), Verdict::Pass);
        std::fs::write(dir.path().join("ambit-cni.state"), "{").unwrap();
        assert_eq!(decide(dir.path(), &pod("shop")), Verdict::Pass);
    }
}
