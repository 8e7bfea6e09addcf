//! When a certificate is renewed and when a failed attempt is made again. `now` and jitter are arguments.

use std::time::{Duration, SystemTime};

/// When to renew a certificate valid from `not_before` to `not_after`: at half-life, moved by up to ±5 % of the lifetime.
/// `jitter` is a random number in 0.0..1.0.
pub fn renew_at(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    not_before + lifetime.mul_f64(0.5 + (jitter.clamp(0.0, 1.0) - 0.5) * 0.1)
}

/// The longest wait between two attempts to renew one identity (spec/wire.md §3.4).
pub const BACKOFF_CAP: Duration = Duration::from_secs(150);

/// How long to wait after the `failures`-th failure in a row: from half a second, doubled each time, ±20 %, at most
/// [`BACKOFF_CAP`]. `jitter` is a random number in 0.0..1.0.
pub fn backoff(failures: u32, jitter: f64) -> Duration {
    let base = Duration::from_millis(500).saturating_mul(1 << failures.saturating_sub(1).min(16));
    base.min(BACKOFF_CAP).mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0)).min(BACKOFF_CAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_near_half_life() {
        let start = SystemTime::UNIX_EPOCH;
        let end = start + Duration::from_secs(1000);
        for (jitter, expected) in [(0.0, 450), (0.5, 500), (1.0, 550)] {
            let at = renew_at(start, end, jitter).duration_since(start).unwrap().as_secs_f64();
            assert!((at - f64::from(expected)).abs() < 0.01, "{jitter}: {at}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_the_cap() {
        let waits: Vec<u128> = (1..=4).map(|n| backoff(n, 0.5).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000]);
        assert_eq!(backoff(40, 1.0), BACKOFF_CAP);
    }
}
