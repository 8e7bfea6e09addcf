//! Roots that a CA publishes apart from the certificates that it signs: in a file, or in a ConfigMap.
//!
//! Promises that what was good stays in force until something good takes its place. Leaves to others where they stand and how
//! they are followed.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::TrustBundle;

/// What workloads trust where a CA publishes its roots. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct PublishedRoots(watch::Sender<Arc<TrustBundle>>);

impl Default for PublishedRoots {
    /// Nothing is known yet.
    fn default() -> Self {
        Self(watch::Sender::new(Arc::new(TrustBundle { roots: Vec::new() })))
    }
}

impl PublishedRoots {
    /// Makes the roots in a PEM text what is trusted; answers with their number, if they are others than before. A text that
    /// cannot be used is an error and changes nothing.
    pub(crate) fn take(&self, pem: &[u8]) -> Result<Option<usize>, String> {
        let bundle = TrustBundle::from_pem(pem)?;
        bundle.anchors().map_err(|error| format!("holds a root that cannot be used: {error}"))?;
        let count = bundle.roots.len();
        let differs = self.0.send_if_modified(|now| {
            let differs = **now != bundle;
            if differs {
                *now = Arc::new(bundle);
            }
            differs
        });
        Ok(differs.then_some(count))
    }

    /// The roots in force, waiting up to `patience` for the first ones.
    pub(super) async fn known(&self, patience: Duration) -> Option<Arc<TrustBundle>> {
        let mut changes = self.0.subscribe();
        let known = timeout(patience, changes.wait_for(|bundle| !bundle.roots.is_empty())).await;
        // The sender lives as long as this value.
        known.ok()?.ok().map(|bundle| bundle.clone())
    }

    /// Every change of them.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TestCa;

    #[tokio::test]
    async fn the_last_good_roots_stay_in_force() {
        let text = |cas: &[&TestCa]| -> String {
            cas.iter().map(|ca| pem::encode(&pem::Pem::new("CERTIFICATE", ca.certificate.as_ref()))).collect()
        };
        let (old, new) = (TestCa::new("old"), TestCa::new("new"));
        let roots = PublishedRoots::default();
        let none = Duration::ZERO;
        assert!(roots.known(none).await.is_none());
        assert_eq!(roots.take(text(&[&old, &new]).as_bytes()), Ok(Some(2)));
        assert_eq!(roots.take(text(&[&old, &new]).as_bytes()), Ok(None), "nothing new");
        let noise = pem::encode(&pem::Pem::new("CERTIFICATE", vec![0x30, 0]));
        for bad in ["", "roots", &noise, &text(&[&old]).repeat(65)] {
            assert!(roots.take(bad.as_bytes()).is_err(), "{bad}");
            assert_eq!(roots.known(none).await.unwrap().roots.len(), 2);
        }
        assert_eq!(roots.take(text(&[&new]).as_bytes()), Ok(Some(1)));
        assert_eq!(roots.known(none).await, Some(new.trust()));
    }
}
