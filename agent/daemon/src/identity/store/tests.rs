mod recovery;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use ambit_core::rotation::BACKOFF_CAP;
use tempfile::TempDir;
use tokio::time::{advance, sleep};

use super::*;
use crate::identity::{
    BuiltinCa, Csr, IssueFuture, Issued, Renewed,
    key::PrivateKey,
    svid::PendingKey,
    testing::{TestCa, TokioClock, id},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const SECOND: Duration = Duration::from_secs(1);

/// What the issuer does from now on.
#[derive(Clone)]
enum Script {
    Sign,
    SignAfter(Duration),
    Fail,
    /// Cannot be asked.
    Away,
    Hang,
    Panic,
    /// Hands this out, whatever was asked.
    Answer(Answer),
}

type Answer = fn(&Scripted, &Csr) -> Issued;

struct Scripted {
    ca: BuiltinCa,
    foreign: TestCa,
    clock: Arc<TokioClock>,
    script: Mutex<Script>,
    calls: Mutex<Vec<(Instant, SpiffeId)>>,
    running: AtomicUsize,
    peak: AtomicUsize,
    renewed: Arc<Renewed>,
    _dir: TempDir,
}

impl Scripted {
    fn new() -> Arc<Self> {
        let dir = TempDir::new().unwrap();
        let clock = TokioClock::new();
        let path: PathBuf = dir.path().join("ca");
        let ca = BuiltinCa::open(&path, "td1".parse().unwrap(), clock.clone()).unwrap();
        Arc::new(Self {
            ca,
            foreign: TestCa::new("foreign"),
            clock,
            script: Mutex::new(Script::Sign),
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            renewed: Arc::default(),
            _dir: dir,
        })
    }

    fn store(self: &Arc<Self>, ttl: Duration) -> KeyStore {
        KeyStore::new(self.clone(), self.clock.clone(), ttl)
    }

    fn follow(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn sign(&self, csr: &Csr) -> Issued {
        self.ca.answer(csr).unwrap()
    }
}

struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Issuer for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn issue(&self, csr: Csr) -> IssueFuture<'_> {
        Box::pin(async move {
            self.calls.lock().unwrap().push((Instant::now(), csr.id.clone()));
            self.peak.fetch_max(self.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _running = Running(&self.running);
            let script = self.script.lock().unwrap().clone();
            match script {
                Script::Sign => Ok(self.sign(&csr)),
                Script::SignAfter(wait) => {
                    sleep(wait).await;
                    Ok(self.sign(&csr))
                }
                Script::Away => Err(IssueError::Unreachable("nobody there".into())),
                Script::Fail => Err(IssueError::Refused("the line is cut".into())),
                Script::Hang => std::future::pending().await,
                Script::Panic => panic!("a bug in the issuer"),
                Script::Answer(answer) => Ok(answer(self, &csr)),
            }
        })
    }

    fn renewed(&self) -> Option<Arc<Renewed>> {
        Some(self.renewed.clone())
    }
}

fn web() -> SpiffeId {
    id("spiffe://td1/ns/shop/sa/web")
}

fn numbered(count: usize) -> Vec<SpiffeId> {
    (0..count).map(|number| id(&format!("spiffe://td1/ns/shop/sa/app-{number}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_certificate_comes_at_once_and_shows_in_the_status() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    assert!(matches!(store.svid(&web()).await, Err(IdentityError::NotOnNode(_))));
    store.retain([web()]);
    assert_eq!(store.status()[0].state, IdentityState::Pending);
    assert!(store.current(&web()).is_none());
    let svid = store.svid(&web()).await.unwrap();
    assert_eq!((&svid.id, svid.chain.len()), (&web(), 1));
    assert!(Arc::ptr_eq(&svid, &store.current(&web()).unwrap()));
    let status = &store.status()[0];
    assert_eq!((status.state, status.serial.as_ref()), (IdentityState::Valid, Some(&svid.serial)));
    assert_eq!((status.not_before, status.not_after), (Some(svid.not_before), Some(svid.not_after)));
    let renewal = status.next_renewal.unwrap().duration_since(issuer.clock.now()).unwrap();
    assert!(renewal > DAY * 3 / 8 && renewal < DAY * 5 / 8, "{renewal:?}");
    assert!(format!("{svid:?}").contains("PrivateKey(..)"), "keys are not printed");
}

#[tokio::test(start_paused = true)]
async fn certificates_are_renewed_near_half_life_with_new_keys() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    store.retain([web()]);
    let first = store.svid(&web()).await.unwrap();
    sleep(DAY * 3 / 8 - Duration::from_secs(60)).await;
    assert_eq!(store.current(&web()).unwrap().serial, first.serial);
    sleep(DAY / 4 + Duration::from_secs(120)).await;
    let second = store.current(&web()).unwrap();
    assert_ne!(second.serial, first.serial);
    assert_ne!(second.key.public_key().unwrap(), first.key.public_key().unwrap());
    for _ in 0..24 * 10 {
        sleep(HOUR).await;
        assert!(store.current(&web()).is_some());
    }
    let calls = issuer.calls();
    assert!((17..=28).contains(&calls), "{calls} certificates in eleven days");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_survived_until_expiry_and_no_longer() {
    let issuer = Scripted::new();
    let store = issuer.store(HOUR);
    store.retain([web()]);
    let svid = store.svid(&web()).await.unwrap();
    issuer.follow(Script::Fail);
    sleep(HOUR * 9 / 10).await;
    assert_eq!(store.svid(&web()).await.unwrap().serial, svid.serial);
    let status = &store.status()[0];
    assert_eq!(status.state, IdentityState::Valid);
    assert!(status.last_error.as_ref().unwrap().contains("the line is cut"), "{:?}", status.last_error);
    let calls = issuer.calls();
    assert!((5..40).contains(&calls), "{calls} calls: backoff up to the cap");

    sleep(HOUR / 5).await;
    assert!(store.current(&web()).is_none(), "an expired certificate is never handed out");
    let error = store.svid(&web()).await.unwrap_err();
    assert!(matches!(&error, IdentityError::Expired { .. }), "{error}");
    assert!(with_causes(&error).contains("expired") && with_causes(&error).contains("the line is cut"));
    assert_eq!(store.status()[0].state, IdentityState::Expired);

    issuer.follow(Script::Sign);
    sleep(BACKOFF_CAP + SECOND).await;
    assert!(store.current(&web()).is_some(), "recovered within the backoff cap");
    assert_eq!(store.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_and_hopeless_waiting_is_not_begun() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    issuer.follow(Script::Hang);
    store.retain([web()]);
    let start = Instant::now();
    assert!(matches!(store.svid(&web()).await, Err(IdentityError::Pending(_))));
    assert_eq!(start.elapsed().as_secs(), 5);
    sleep(Duration::from_secs(27)).await;
    assert!(store.status()[0].last_error.as_ref().unwrap().contains("within 30 s"));

    issuer.follow(Script::Fail);
    sleep(Duration::from_secs(120)).await;
    let (start, before) = (Instant::now(), issuer.calls());
    for _ in 0..1000 {
        let error = store.svid(&web()).await.unwrap_err();
        assert!(with_causes(&error).contains("the line is cut"), "{}", with_causes(&error));
    }
    assert_eq!((start.elapsed(), issuer.calls() - before), (Duration::ZERO, 0), "connections do not hammer");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_waits_is_served_by_the_next_attempt() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    issuer.follow(Script::Fail);
    store.retain([web()]);
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.svid(&web()).await.map(|svid| svid.id.clone()) }
    });
    sleep(SECOND).await;
    issuer.follow(Script::Sign);
    assert_eq!(waiting.await.unwrap().unwrap(), web());
}

#[tokio::test(start_paused = true)]
async fn eight_attempts_at_a_time_and_waiting_connections_first() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    issuer.follow(Script::SignAfter(SECOND));
    let ids = numbered(200);
    store.retain(ids.clone());
    sleep(SECOND / 2).await;
    let pending: Vec<_> =
        ids.iter().filter(|id| !issuer.calls.lock().unwrap().iter().any(|(_, c)| c == *id)).collect();
    let start = Instant::now();
    store.svid(pending[pending.len() - 1]).await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(1600), "{:?}", start.elapsed());
    sleep(Duration::from_secs(30)).await;
    assert!(ids.iter().all(|id| store.current(id).is_some()));
    assert_eq!((issuer.peak.load(Ordering::SeqCst), issuer.calls()), (8, 200));
}

#[tokio::test(start_paused = true)]
async fn identities_without_pods_are_forgotten() {
    let issuer = Scripted::new();
    let store = issuer.store(HOUR);
    let ids = numbered(3);
    store.retain(ids.clone());
    store.svid(&ids[0]).await.unwrap();
    let kept = store.svid(&ids[1]).await.unwrap();
    store.retain(std::iter::once(ids[1].clone()));
    assert!(store.current(&ids[0]).is_none());
    assert!(Arc::ptr_eq(&kept, &store.current(&ids[1]).unwrap()), "the others keep theirs");
    assert_eq!(store.status().len(), 1);
    let before = issuer.calls();
    sleep(HOUR).await;
    assert!(issuer.calls.lock().unwrap()[before..].iter().all(|(_, id)| id == &ids[1]));

    issuer.follow(Script::Hang);
    store.retain([web()]);
    let start = Instant::now();
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.svid(&web()).await.map(drop) }
    });
    sleep(SECOND).await;
    store.retain([]);
    assert!(matches!(waiting.await.unwrap(), Err(IdentityError::NotOnNode(_))));
    assert_eq!(start.elapsed(), SECOND, "who waits for a forgotten identity learns it at once");
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_believed_unless_it_fits() {
    let cases: [(&str, Answer, &str); 8] = [
        ("nothing", |_, _| Issued { chain: vec![], roots: vec![], key: None }, "0 certificates"),
        ("noise", |s, csr| Issued { chain: vec![vec![1, 2, 3].into()], ..s.sign(csr) }, "cannot be read"),
        ("another identity", |s, _| s.sign(&request_of("other")), "got a certificate for"),
        ("another key", |s, _| s.sign(&request_of("web")), "for another key"),
        (
            "foreign roots",
            |s, csr| Issued { roots: vec![s.foreign.certificate.clone()], ..s.sign(csr) },
            "does not lead to the root",
        ),
        ("bad roots", |s, csr| Issued { roots: vec![vec![1, 2, 3].into()], ..s.sign(csr) }, "root"),
        ("over", |s, csr| foreign(s, csr, -7200, -3600), "whoever renews it has not"),
        ("from the future", |s, csr| foreign(s, csr, 3600, 7200), "clock"),
    ];
    for (name, answer, expected) in cases {
        let issuer = Scripted::new();
        let store = issuer.store(DAY);
        store.retain([web()]);
        let good = store.svid(&web()).await.unwrap();
        issuer.follow(Script::Answer(answer));
        sleep(DAY * 2 / 3).await;
        let status = &store.status()[0];
        let error = status.last_error.as_ref().unwrap_or_else(|| panic!("{name} was believed"));
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(store.current(&web()).unwrap().serial, good.serial, "{name}: the good one stays");
        let skewed = store.counts().skewed > 0;
        assert_eq!(
            skewed,
            name == "from the future",
            "{name}: what somebody keeps for us tells nothing of clocks"
        );
    }
}

fn request_of(account: &str) -> Csr {
    PendingKey::generate(id(&format!("spiffe://td1/ns/shop/sa/{account}")), DAY).unwrap().csr
}

/// An answer with a key of its own, valid between two times, in seconds from now.
fn foreign(issuer: &Scripted, csr: &Csr, from: i64, to: i64) -> Issued {
    let at = |seconds: i64| match u64::try_from(seconds) {
        Ok(ahead) => issuer.clock.now() + Duration::from_secs(ahead),
        Err(_) => issuer.clock.now() - Duration::from_secs(seconds.unsigned_abs()),
    };
    let (leaf, key) = issuer.foreign.leaf(&[&csr.id.to_string()], at(from), at(to), |_| ());
    let roots = vec![issuer.foreign.certificate.clone()];
    Issued { chain: vec![leaf], roots, key: Some(PrivateKey::from(key)) }
}

#[tokio::test(start_paused = true)]
async fn issuers_may_bring_keys_of_their_own() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    issuer.follow(Script::Answer(|issuer, csr| foreign(issuer, csr, 30, 3600)));
    store.retain([web()]);
    let svid = store.svid(&web()).await.unwrap();
    assert_eq!(svid.trust.roots, std::slice::from_ref(&issuer.foreign.certificate));
    assert!(svid.not_before > issuer.clock.now(), "half a minute of skew is tolerated");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_issuer_is_a_failure_like_any_other() {
    let issuer = Scripted::new();
    let store = issuer.store(DAY);
    issuer.follow(Script::Panic);
    store.retain([web()]);
    sleep(SECOND).await;
    assert!(store.status()[0].last_error.as_ref().unwrap().contains("failed internally"));
    issuer.follow(Script::Sign);
    store.svid(&web()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_store_asks_no_more() {
    let issuer = Scripted::new();
    let store = issuer.store(HOUR);
    store.retain([web()]);
    store.svid(&web()).await.unwrap();
    drop(store.clone());
    sleep(HOUR).await;
    let calls = issuer.calls();
    assert!(calls > 1, "a clone is not the store");
    drop(store);
    sleep(DAY).await;
    assert_eq!(issuer.calls(), calls);
    assert_eq!(Arc::strong_count(&issuer), 1);
}

#[tokio::test(start_paused = true)]
async fn many_short_lived_identities_never_lapse_and_spread() {
    let issuer = Scripted::new();
    let store = issuer.store(Duration::from_secs(60));
    let ids = numbered(500);
    store.retain(ids.clone());
    sleep(SECOND).await;
    let start = Instant::now();
    for _ in 0..300 {
        advance(SECOND).await;
        sleep(Duration::from_millis(1)).await;
        assert!(ids.iter().all(|id| store.current(id).is_some()));
    }
    let calls = issuer.calls.lock().unwrap();
    let mut rate = [0_usize; 301];
    for (at, _) in calls.iter().filter(|(at, _)| *at >= start) {
        rate[(*at - start).as_secs() as usize] += 1;
    }
    // Over two seconds, so that chance alone does not make a peak.
    let peak = rate[..300].chunks(2).map(|pair| pair.iter().sum::<usize>()).max().unwrap() as f64 / 2.0;
    let mean = rate[..300].iter().sum::<usize>() as f64 / 300.0;
    assert!(peak <= 3.0 * mean, "{peak} renewals in a second, {mean} on average");
    assert!((13.0..22.0).contains(&mean), "{mean}");
}
