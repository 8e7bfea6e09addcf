//! Roots that are trusted beside those of the issuer, as long as one issuer takes the place of another: then some nodes have
//! certificates of the one, and some of the other.
//!
//! Promises that an identity trusts them from its first certificate on, whatever its issuer says later. Which they are, and for
//! how long, is the operator's to say.

use std::{collections::HashSet, sync::Arc};

use ambit_core::model::SpiffeId;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::{Csr, IssueFuture, Issued, Issuer, Renewed, TrustBundle};

/// An issuer whose workloads trust other roots as well.
pub(crate) struct AlsoTrusting {
    issuer: Arc<dyn Issuer>,
    roots: Vec<CertificateDer<'static>>,
    trust: Option<watch::Receiver<Arc<TrustBundle>>>,
}

impl AlsoTrusting {
    /// The `issuer` with these roots beside its own. Must be called in a tokio runtime.
    pub(crate) fn new(issuer: Arc<dyn Issuer>, roots: Vec<CertificateDer<'static>>) -> Self {
        let trust = issuer.trust().map(|own| follow(own, roots.clone()));
        Self { issuer, roots, trust }
    }
}

impl Issuer for AlsoTrusting {
    fn name(&self) -> &str {
        self.issuer.name()
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move {
            let issued = self.issuer.issue(csr).await?;
            Ok(Issued { roots: beside(issued.roots, &self.roots), ..issued })
        })
    }

    fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
        self.trust.clone()
    }

    fn retain(&self, ids: &HashSet<SpiffeId>) {
        self.issuer.retain(ids);
    }

    fn renewed(&self) -> Option<Arc<Renewed>> {
        self.issuer.renewed()
    }
}

/// The issuer's own roots, followed, and `others`.
fn follow(
    mut own: watch::Receiver<Arc<TrustBundle>>,
    others: Vec<CertificateDer<'static>>,
) -> watch::Receiver<Arc<TrustBundle>> {
    let both = move |own: &TrustBundle| {
        // While the issuer's own are not known, nothing is.
        let roots = if own.roots.is_empty() { Vec::new() } else { beside(own.roots.clone(), &others) };
        Arc::new(TrustBundle { roots })
    };
    let first = both(&own.borrow_and_update());
    let (tell, told) = watch::channel(first);
    tokio::spawn(async move {
        while own.changed().await.is_ok() {
            let bundle = both(&own.borrow_and_update());
            if tell.send(bundle).is_err() {
                return;
            }
        }
    });
    told
}

fn beside(
    mut roots: Vec<CertificateDer<'static>>,
    others: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    for other in others {
        if !roots.contains(other) {
            roots.push(other.clone());
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TestCa;

    struct Following(watch::Sender<Arc<TrustBundle>>);

    impl Issuer for Following {
        fn name(&self) -> &str {
            "following"
        }

        fn issue(&self, _: Csr) -> IssueFuture<'_> {
            Box::pin(async { Ok(Issued { chain: vec![], roots: self.0.borrow().roots.clone(), key: None }) })
        }

        fn trust(&self) -> Option<watch::Receiver<Arc<TrustBundle>>> {
            Some(self.0.subscribe())
        }
    }

    #[tokio::test]
    async fn the_other_roots_stay_beside_whatever_the_issuer_says() {
        let [first, second, other] = ["first", "second", "other"].map(TestCa::new);
        let roots = |cas: &[&TestCa]| -> Vec<_> { cas.iter().map(|ca| ca.certificate.clone()).collect() };
        let bundle = |cas| Arc::new(TrustBundle { roots: roots(cas) });
        let inner = Arc::new(Following(watch::Sender::new(bundle(&[]))));
        let issuer = AlsoTrusting::new(inner.clone(), roots(&[&other]));
        let mut trust = issuer.trust().unwrap();
        assert!(trust.borrow().roots.is_empty(), "nothing is known yet");
        for (told, expected) in [
            (bundle(&[&first]), bundle(&[&first, &other])),
            (bundle(&[&first, &second]), bundle(&[&first, &second, &other])),
            (bundle(&[&other, &second]), bundle(&[&other, &second])),
        ] {
            inner.0.send_replace(told);
            trust.changed().await.unwrap();
            assert_eq!(*trust.borrow_and_update(), expected);
            assert_eq!(beside(inner.0.borrow().roots.clone(), &issuer.roots), expected.roots);
        }
    }
}
