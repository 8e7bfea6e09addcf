//! After an outage that outlasted certificates: how soon they are back.

use super::*;

/// The longest that an identity may stay without a certificate once its issuer is back.
const BACK: Duration = Duration::from_secs(5);

/// Brings `ids` to certificates of a minute, and takes their issuer away for ten.
async fn long_away(issuer: &Arc<Scripted>, ids: &[SpiffeId]) -> KeyStore {
    let store = issuer.store(Duration::from_secs(60));
    store.retain(ids.to_vec());
    sleep(SECOND).await;
    assert!(ids.iter().all(|id| store.current(id).is_some()));
    issuer.follow(Script::Away);
    sleep(Duration::from_secs(300)).await;
    let calls = issuer.calls();
    sleep(Duration::from_secs(300)).await;
    let calls = issuer.calls() - calls;
    assert!(calls < 155 + 3 * ids.len(), "one is asked for at a time: {calls} in five minutes");
    assert!(ids.iter().all(|id| store.current(id).is_none()));
    store
}

#[tokio::test(start_paused = true)]
async fn all_are_back_within_seconds_of_an_issuer_that_was_away() {
    for count in [1, 50] {
        let (issuer, ids) = (Scripted::new(), numbered(count));
        let store = long_away(&issuer, &ids).await;
        issuer.follow(Script::Sign);
        sleep(BACK).await;
        let lacking = ids.iter().filter(|id| store.current(id).is_none()).count();
        assert_eq!(lacking, 0, "of {count}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_refuses_for_a_while_after_its_return_is_asked_again_soon() {
    let (issuer, ids) = (Scripted::new(), numbered(20));
    let store = long_away(&issuer, &ids).await;
    issuer.follow(Script::Fail);
    sleep(Duration::from_millis(3_500)).await;
    issuer.follow(Script::Sign);
    sleep(BACK).await;
    assert!(ids.iter().all(|id| store.current(id).is_some()));
}

#[tokio::test(start_paused = true)]
async fn what_an_issuer_says_to_have_is_fetched_while_a_backoff_runs() {
    let issuer = Scripted::new();
    issuer.follow(Script::Fail);
    let store = issuer.store(HOUR);
    store.retain([web()]);
    sleep(HOUR).await;
    assert!(store.current(&web()).is_none());
    issuer.follow(Script::Sign);
    issuer.renewed.tell(web());
    sleep(Duration::from_millis(10)).await;
    assert!(store.current(&web()).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_an_attempt_is_under_way_is_fetched_after_it() {
    let issuer = Scripted::new();
    issuer.follow(Script::SignAfter(SECOND));
    let store = issuer.store(HOUR);
    store.retain([web()]);
    sleep(Duration::from_millis(500)).await;
    issuer.renewed.tell(web());
    sleep(Duration::from_millis(600)).await;
    assert_eq!(issuer.calls(), 2);
    sleep(SECOND * 10).await;
    assert_eq!(issuer.calls(), 2, "once");
}
