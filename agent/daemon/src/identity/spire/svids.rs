//! The subscription to one identity's SVIDs. Promises that what SPIRE has given stays in use until it gives something newer, and
//! that what is said of SPIRE meanwhile is true.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ambit_core::model::SpiffeId;
use ambit_proto::spire::delegatedidentity::{
    Selector, SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout_at},
};
use tonic::Status;
use tracing::{debug, warn};
use zeroize::Zeroize;

use super::{FIRST_PAUSE, LAST_PAUSE, Shared, Trouble};
use crate::identity::key::PrivateKey;

/// How long changes of an identity's pods are collected before a subscription names the pods anew.
pub(super) const SETTLE: Duration = Duration::from_millis(100);
/// While SPIRE replaces certificates it may give none for a moment: so long one that it gave before outweighs its silence.
const DOUBT: Duration = Duration::from_secs(3);
/// A SPIRE agent that starts again is away for less than this; then the store is told, if a certificate is in use.
const BLINK: Duration = Duration::from_secs(2);

/// What is known of an identity's SVID.
#[derive(Clone, Default)]
pub(super) struct Latest {
    /// The last one that SPIRE gave.
    pub(super) svid: Option<Arc<Given>>,
    /// Why there is none, or none newer.
    pub(super) trouble: Option<Trouble>,
    /// The store has been told of the trouble.
    told: bool,
}

/// A certificate and its key, as SPIRE gave them.
pub(super) struct Given {
    pub(super) chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    /// The store has it.
    handed_over: AtomicBool,
}

impl Latest {
    #[cfg(test)]
    pub(super) fn of(given: Given) -> Self {
        Self { svid: Some(Arc::new(given)), ..Self::default() }
    }

    /// Whether it says something.
    pub(super) fn is_known(&self) -> bool {
        self.svid.is_some() || self.trouble.is_some()
    }

    /// What the store gets that asks: what it has already is no answer while SPIRE gives no more.
    pub(super) fn answer(self) -> Result<Arc<Given>, Trouble> {
        match (self.svid, self.trouble) {
            (Some(svid), None) => Ok(svid),
            (Some(svid), Some(_)) if !svid.handed_over.load(Ordering::Relaxed) => Ok(svid),
            (_, Some(trouble)) => Err(trouble),
            (None, None) => Err(Trouble::Unreachable("SPIRE has not answered yet".into())),
        }
    }
}

impl Given {
    pub(super) fn new(chain: Vec<CertificateDer<'static>>, key: Vec<u8>) -> Self {
        Self { chain, key, handed_over: AtomicBool::new(false) }
    }

    /// The key, for the store.
    pub(super) fn hand_over(&self) -> PrivateKey {
        self.handed_over.store(true, Ordering::Relaxed);
        PrivateKey::from(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone())))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Keeps `latest` up to date for ever. `pods` tells of changes of the identity's pods.
pub(super) async fn follow(
    shared: Arc<Shared>,
    id: SpiffeId,
    latest: watch::Sender<Latest>,
    pods: Arc<Notify>,
) {
    let follower = Follower { shared, id, latest };
    let mut pause = FIRST_PAUSE;
    let mut failing_since = None;
    loop {
        // Asked for anew each time: pods come and go.
        let named = (follower.shared.selectors)(&follower.id);
        let ended = tokio::select! {
            ended = follower.subscribe(named.clone(), &mut pause, &mut failing_since) => ended,
            () = follower.others_than(&named, &pods) => {
                debug!(id = %follower.id, "its pods have changed; subscribing to its SVIDs with what is known of them now");
                continue;
            }
        };
        let trouble = follower.shared.way.trouble(&ended);
        if failing_since.is_none() {
            warn!(id = %follower.id, error = trouble.text(), "no SVIDs from SPIRE; subscribing again");
        }
        let since = *failing_since.get_or_insert_with(Instant::now);
        follower.is_in(trouble, since.elapsed() >= BLINK);
        tokio::select! {
            () = follower.shared.rest(pause) => {}
            () = follower.others_than(&named, &pods) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

struct Follower {
    shared: Arc<Shared>,
    id: SpiffeId,
    latest: watch::Sender<Latest>,
}

impl Follower {
    /// One subscription, to its end.
    async fn subscribe(
        &self,
        named: Vec<(String, String)>,
        pause: &mut Duration,
        failing_since: &mut Option<Instant>,
    ) -> Status {
        let selectors = named.into_iter().map(|(r#type, value)| Selector { r#type, value }).collect();
        let request = SubscribeToX509sviDsRequest { selectors };
        let mut answers = match self.shared.client().subscribe_to_x509svi_ds(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
        let mut first = true;
        let mut doubtful = None;
        loop {
            let answer = match doubtful {
                None => Ok(answers.message().await),
                Some(until) => timeout_at(until, answers.message()).await,
            };
            let answer = match answer {
                Ok(Ok(Some(answer))) => answer,
                Ok(Ok(None)) => return Status::unavailable("the SPIRE agent ended the subscription"),
                Ok(Err(status)) => return status,
                Err(_) => {
                    doubtful = None;
                    self.has_no_entry();
                    continue;
                }
            };
            (*pause, *failing_since) = (FIRST_PAUSE, None);
            doubtful = match self.own(answer) {
                Some(given) => {
                    self.take(given);
                    None
                }
                None if self.latest.borrow().svid.is_some() => {
                    doubtful.or_else(|| Some(Instant::now() + DOUBT))
                }
                None => {
                    self.has_no_entry();
                    None
                }
            };
            if mem::take(&mut first) {
                self.shared.answered.send_modify(|count| *count += 1);
            }
        }
    }

    /// What an answer has for this identity.
    fn own(&self, answer: SubscribeToX509sviDsResponse) -> Option<Given> {
        let id = &self.id;
        let wanted = format!("/ns/{}/sa/{}", id.namespace(), id.service_account());
        let own = answer.x509_svids.into_iter().filter_map(|with_key| {
            let svid = with_key.x509_svid?;
            let name = svid.id.as_ref()?;
            let own = name.trust_domain == id.trust_domain().as_str() && name.path == wanted;
            own.then_some((svid, with_key.x509_svid_key))
        });
        // Where pods have entries of their own there is one for each: that of a pod that has gone ends first.
        let (svid, key) = own.max_by_key(|(svid, _)| svid.expires_at)?;
        Some(Given::new(svid.cert_chain.into_iter().map(CertificateDer::from).collect(), key))
    }

    fn take(&self, given: Given) {
        let news = self.latest.send_if_modified(|latest| {
            let known = latest.svid.as_ref();
            let known = known.is_some_and(|known| known.chain == given.chain && known.key == given.key);
            // One that is known is news as well, if the store was told that there is trouble.
            let news = !known || latest.trouble.is_some();
            if !known {
                latest.svid = Some(Arc::new(given));
            }
            (latest.trouble, latest.told) = (None, false);
            news
        });
        if news {
            self.shared.renewed.tell(self.id.clone());
        }
    }

    fn has_no_entry(&self) {
        let text = format!(
            "SPIRE has no entry that gives {} to its pods, for what is known of them: k8s:ns, k8s:sa, k8s:pod-uid, \
             k8s:pod-name, k8s:pod-label, k8s:node-name",
            self.id
        );
        self.is_in(Trouble::Refused(text), true);
    }

    /// Takes note of trouble; the store hears of it once it lasts.
    fn is_in(&self, trouble: Trouble, lasting: bool) {
        let mut tell = false;
        self.latest.send_modify(|latest| {
            let same = latest.trouble.as_ref().is_some_and(|before| before.is_like(&trouble));
            tell = lasting && !(same && latest.told);
            latest.told = tell || (same && latest.told);
            latest.trouble = Some(trouble);
        });
        if tell {
            self.shared.renewed.tell(self.id.clone());
        }
    }

    /// Waits until other things are known of the identity's pods than `named`. What changes in quick succession counts as one
    /// change.
    async fn others_than(&self, named: &[(String, String)], pods: &Notify) {
        loop {
            pods.notified().await;
            sleep(SETTLE).await;
            if (self.shared.selectors)(&self.id) != named {
                return;
            }
        }
    }
}
