use super::*;

const START: SystemTime = SystemTime::UNIX_EPOCH;

fn at(seconds: f64) -> SystemTime {
    START + Duration::from_secs_f64(seconds)
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://td1/ns/shop/sa/{name}").parse().unwrap()
}

fn ids(names: &[&str]) -> HashSet<SpiffeId> {
    names.iter().map(|name| id(name)).collect()
}

/// Everything that may start at `now`, in order.
fn drain(schedule: &mut Schedule, now: SystemTime) -> (Vec<SpiffeId>, Option<SystemTime>) {
    let mut started = Vec::new();
    loop {
        match schedule.next(now) {
            Next::Start(id) => started.push(id),
            Next::Wait(until) => return (started, until),
        }
    }
}

#[test]
fn renewal_is_near_half_life() {
    for (jitter, expected) in [(0.0, 375.0), (0.5, 500.0), (1.0, 625.0), (7.0, 625.0)] {
        let renewal = renew_at(START, at(1000.0), jitter).duration_since(START).unwrap().as_secs_f64();
        assert!((renewal - expected).abs() < 0.01, "{jitter}: {renewal}");
    }
    assert_eq!(
        renew_at(at(10.0), at(5.0), 0.5),
        at(11.0),
        "an expired certificate is not renewed in a tight loop"
    );
}

#[test]
fn backoff_doubles_up_to_the_cap() {
    let waits: Vec<u128> = (1..=4).map(|n| backoff(n, 0.5).as_millis()).collect();
    assert_eq!(waits, [500, 1000, 2000, 4000]);
    assert_eq!(backoff(40, 1.0), BACKOFF_CAP);
    assert_eq!(backoff(u32::MAX, 0.5), BACKOFF_CAP);
}

#[test]
fn the_limit_holds_and_waiting_connections_go_first() {
    let mut schedule = Schedule::new(2);
    schedule.retain(&ids(&["a", "b", "c", "d"]), START);
    assert_eq!(schedule.demand(&id("c")), Some(Progress::Due(START)));
    let (started, until) = drain(&mut schedule, START);
    assert_eq!((started.len(), until), (2, None), "two at a time");
    assert_eq!(started[0], id("c"));
    assert_eq!(schedule.progress(&id("c")), Some(Progress::Running));
    assert_eq!(schedule.issued(&id("c"), START, at(100.0), 0.5), Some(at(50.0)));
    assert_eq!(drain(&mut schedule, START).0.len(), 1, "one place was free again");
}

#[test]
fn identities_without_certificate_go_before_renewals_and_renewals_by_expiry() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["long", "short", "expired"]), START);
    drain(&mut schedule, START);
    schedule.issued(&id("long"), START, at(100.0), 0.5);
    schedule.issued(&id("short"), START, at(90.0), 0.5);
    schedule.issued(&id("expired"), START, at(60.0), 0.5);
    schedule.retain(&ids(&["long", "short", "expired", "new"]), at(70.0));
    let (started, until) = drain(&mut schedule, at(70.0));
    assert_eq!(started, [id("expired"), id("new"), id("short"), id("long")]);
    assert_eq!(until, None);
}

#[test]
fn failures_back_off_and_success_forgets_them() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["a"]), START);
    drain(&mut schedule, START);
    assert_eq!(schedule.failed(&id("a"), START, Failure::Answer, 0.5), Some(at(0.5)));
    assert_eq!(
        schedule.demand(&id("a")),
        Some(Progress::Due(at(0.5))),
        "a waiting connection does not undercut it"
    );
    assert_eq!(drain(&mut schedule, at(0.4)), (vec![], Some(at(0.5))));
    assert_eq!(drain(&mut schedule, at(0.5)).0, [id("a")]);
    assert_eq!(schedule.failed(&id("a"), at(1.0), Failure::Answer, 0.5), Some(at(2.0)));
    drain(&mut schedule, at(2.0));
    schedule.issued(&id("a"), at(2.0), at(102.0), 0.5);
    drain(&mut schedule, at(52.0));
    assert_eq!(
        schedule.failed(&id("a"), at(52.0), Failure::Answer, 0.5),
        Some(at(52.5)),
        "the first failure again"
    );
}

#[test]
fn forgotten_identities_count_until_their_attempt_ends() {
    let mut schedule = Schedule::new(1);
    schedule.retain(&ids(&["a"]), START);
    drain(&mut schedule, START);
    schedule.retain(&ids(&["b"]), START);
    assert_eq!(schedule.progress(&id("a")), None);
    assert_eq!(drain(&mut schedule, START).0, []);
    assert_eq!(schedule.issued(&id("a"), START, at(100.0), 0.5), None, "nobody wants it any more");
    assert_eq!(drain(&mut schedule, START).0, [id("b")]);
    assert_eq!(schedule.failed(&id("b"), START, Failure::Answer, 0.5), Some(at(0.5)));
}

#[test]
fn a_clock_put_back_does_not_stop_renewal() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["a"]), at(100_000.0));
    drain(&mut schedule, at(100_000.0));
    schedule.failed(&id("a"), at(100_000.0), Failure::Answer, 0.5);
    assert_eq!(drain(&mut schedule, at(99_990.0)).0, [], "a small step is nothing");
    assert_eq!(drain(&mut schedule, at(50_000.0)).0, [id("a")]);
}

#[test]
fn what_is_expedited_is_due_at_once_but_keeps_its_backoff() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["a"]), START);
    drain(&mut schedule, START);
    schedule.issued(&id("a"), START, at(100.0), 0.5);
    schedule.expedite(&id("a"), at(10.0));
    assert_eq!(drain(&mut schedule, at(10.0)).0, [id("a")]);
    let next = schedule.failed(&id("a"), at(10.0), Failure::Answer, 0.5);
    schedule.expedite(&id("a"), at(10.0));
    assert_eq!(drain(&mut schedule, at(10.0)), (vec![], next));
}

#[test]
fn what_is_new_at_the_issuer_is_fetched_at_once_whatever_failed() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["a"]), START);
    for _ in 0..12 {
        schedule.news(&id("a"), START);
        assert_eq!(drain(&mut schedule, START).0, [id("a")]);
        schedule.failed(&id("a"), START, Failure::Answer, 0.5);
    }
    assert_eq!(drain(&mut schedule, at(100.0)).0, [], "long waits");
    schedule.news(&id("a"), at(100.0));
    assert_eq!(drain(&mut schedule, at(100.0)).0, [id("a")]);
    // It comes again while that attempt is under way, which may have missed it.
    schedule.news(&id("a"), at(100.0));
    assert_eq!(drain(&mut schedule, at(100.0)), (vec![], None));
    schedule.issued(&id("a"), at(100.0), at(200.0), 0.5);
    assert_eq!(drain(&mut schedule, at(100.0)).0, [id("a")]);
    schedule.issued(&id("a"), at(100.0), at(200.0), 0.5);
    assert_eq!(drain(&mut schedule, at(100.0)), (vec![], Some(at(150.0))), "once");
}

/// Attempts from `from` on, by an issuer that gives no answer before `back` and refuses `refused` then, until `end`.
fn outage(schedule: &mut Schedule, from: f64, back: f64, end: f64, refused: &[&str]) -> Vec<(f64, SpiffeId)> {
    let (mut now, mut made) = (from, Vec::new());
    while now < end {
        let (started, _) = drain(schedule, at(now));
        for id in started {
            match now {
                _ if now < back => schedule.failed(&id, at(now), Failure::Silence, 0.5),
                _ if refused.iter().any(|name| self::id(name) == id) => {
                    schedule.failed(&id, at(now), Failure::Answer, 0.5)
                }
                _ => schedule.issued(&id, at(now), at(now + 3600.0), 0.5),
            };
            made.push((now, id));
        }
        now += 0.1;
    }
    made
}

#[test]
fn all_are_asked_for_within_seconds_of_a_silent_issuers_return() {
    for names in [&["a"][..], &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]] {
        let mut schedule = Schedule::new(8);
        schedule.retain(&ids(names), START);
        let made = outage(&mut schedule, 0.0, 600.0, 620.0, &[]);
        let since = |from: f64| made.iter().filter(move |(at, _)| *at >= from);
        let before = made.len() - since(300.0).count();
        assert!((110..160 + 12 * names.len()).contains(&before), "one at a time, not {before}");
        assert_eq!(since(602.5).count(), 0, "{:?}", since(600.0).collect::<Vec<_>>());
        let back: HashSet<_> = since(600.0).map(|(_, id)| id.clone()).collect();
        assert_eq!(back, ids(names));
    }
}

#[test]
fn one_that_is_refused_keeps_its_backoff_while_others_are_answered() {
    let mut schedule = Schedule::new(8);
    schedule.retain(&ids(&["good", "bad"]), START);
    let made = outage(&mut schedule, 0.0, 100.0, 1100.0, &["bad"]);
    let bad = made.iter().filter(|(at, name)| *at >= 100.0 && *name == id("bad")).count();
    assert!((8..20).contains(&bad), "{bad} attempts in 1000 s");
    // Renewals of the other one do not make it sooner.
    for round in 0..5 {
        let now = at(1100.0 + f64::from(round));
        schedule.news(&id("good"), now);
        assert_eq!(drain(&mut schedule, now).0, [id("good")]);
        schedule.issued(&id("good"), now, at(9000.0), 0.5);
    }
}

#[test]
fn an_issuer_that_is_back_before_the_end_is_asked_before_the_end() {
    for jitter in [0.0, 0.5, 1.0] {
        let mut schedule = Schedule::new(8);
        schedule.retain(&ids(&["a"]), START);
        drain(&mut schedule, START);
        let end = at(30.0);
        let mut now = schedule.issued(&id("a"), START, end, jitter).unwrap();
        let mut attempts = Vec::new();
        while now < at(60.0) {
            assert_eq!(drain(&mut schedule, now).0, [id("a")]);
            attempts.push(now);
            now = schedule.failed(&id("a"), now, Failure::Answer, jitter).unwrap();
        }
        let within =
            |from: f64, to: f64| attempts.iter().filter(|now| (at(from)..at(to)).contains(now)).count();
        assert!(within(27.0, 29.0) >= 1, "back at nine tenths: {attempts:?}");
        assert!(within(29.5, 30.6) >= 1 && attempts.len() <= 20, "{attempts:?}");
        assert!(within(30.6, 48.0) >= 1, "and it goes on after the end as before it: {attempts:?}");
    }
}
