use super::*;
use crate::discovery::kinds::Kind;

const HOUR: Duration = Duration::from_secs(3_600);

fn last(folder: Option<&std::path::Path>) -> LastKnown {
    let settings = PolicyHold { time: HOUR, folder: folder.map(std::path::Path::to_owned) };
    LastKnown::load(Kind::PeerAuthentication.row(), &settings, Instant::now())
}

fn names<const N: usize>(names: [&str; N]) -> HashSet<ObjectName> {
    names.into_iter().map(|name| ObjectName::new("shop", name)).collect()
}

fn stand(uid: &str) -> Standing {
    Standing::Stands(uid.to_owned())
}

/// With these objects, read under the definition `1`.
fn read<const N: usize>(objects: [&str; N]) -> LastKnown {
    let mut last = last(None);
    let now = Instant::now();
    names(objects).into_iter().for_each(|name| last.stated(name, Value::Null, now));
    last.listed(&names(objects), now);
    assert!(last.judge(stand("1"), now).is_empty());
    last
}

#[tokio::test(start_paused = true)]
async fn only_what_somebody_removed_is_gone() {
    for (standing, gone) in [
        (stand("1"), 1),
        (stand("2"), 0),
        (Standing::Ending, 0),
        (Standing::Absent, 0),
        (Standing::Unknown("no answer".to_owned()), 0),
    ] {
        let mut last = read(["a", "b"]);
        last.unstated(&ObjectName::new("shop", "a"));
        assert!(last.is_in_doubt());
        assert_eq!(last.judge(standing.clone(), Instant::now()).len(), gone, "{standing:?}");
        assert_eq!(last.objects().count(), 2 - gone, "{standing:?}");
        let told = last.problem(Kind::PeerAuthentication.row()).is_some();
        assert_eq!(told, gone == 0, "{standing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_goes_at_the_end_and_what_is_stated_again_does_not() {
    let mut last = read(["a", "b"]);
    let start = Instant::now();
    assert!(last.definition_is_gone(start).is_empty());
    last.stated(ObjectName::new("shop", "a"), Value::Null, start);
    assert!(last.expired(start + HOUR - Duration::from_secs(1)).is_empty());
    assert_eq!(last.due().map(|at| at.min(start + HOUR)), last.due());
    assert_eq!(last.expired(start + HOUR), [ObjectName::new("shop", "b")]);
    assert!(last.problem(Kind::PeerAuthentication.row()).is_none() && last.objects().count() == 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_resource_that_was_known_closes_nothing() {
    let mut last = read([]);
    assert!(last.definition_is_gone(Instant::now()).is_empty());
    assert!(last.is_known() && last.problem(Kind::PeerAuthentication.row()).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_time_goes_on_over_a_restart_and_a_bad_file_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ambit.last-peerauthentications.json");
    let since = seconds_now() - 3_000;
    let text = format!(
        r#"{{"version":1,"definition":"1","held_since":{since},"objects":[{{"namespace":"shop","name":"a","object":{{}},"held":true}}]}}"#
    );
    std::fs::write(&path, &text).unwrap();
    let mut restarted = last(Some(folder.path()));
    let now = Instant::now();
    assert!(restarted.is_known() && restarted.expired(now + Duration::from_secs(500)).is_empty());
    assert_eq!(restarted.expired(now + Duration::from_secs(601)).len(), 1);
    for bad in ["", "{", r#"{"version":2,"objects":[]}"#, r#"{"version":1}"#] {
        std::fs::write(&path, bad).unwrap();
        assert!(!last(Some(folder.path())).is_known(), "{bad:?} was taken");
    }
}
