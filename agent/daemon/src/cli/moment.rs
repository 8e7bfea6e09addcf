//! Points in time: RFC 3339 for programs, the distance from now for people.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(pub(super) SystemTime);

impl Moment {
    /// `None` for what no clock and no calendar of four-digit years shows.
    pub(super) fn of(time: Option<prost_types::Timestamp>) -> Option<Self> {
        const LAST_SECOND_OF_9999: u64 = 253_402_300_799;
        let time = time?;
        let seconds = u64::try_from(time.seconds).ok().filter(|seconds| *seconds <= LAST_SECOND_OF_9999)?;
        let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)).map(Self)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let since_epoch = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_secs())
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|time| time.format(&Rfc3339).ok())
            .ok_or_else(|| serde::ser::Error::custom("a time beyond the calendar"))?
            .serialize(serializer)
    }
}

/// `in 11h 59m`, `2m 3s ago`, or `-`.
pub(super) fn until(moment: Option<Moment>, now: SystemTime) -> String {
    let Some(Moment(moment)) = moment else { return "-".to_owned() };
    match moment.duration_since(now) {
        Ok(ahead) => format!("in {}", span(ahead)),
        Err(past) => format!("{} ago", span(past.duration())),
    }
}

/// How long ago it was; nothing for what is yet to come.
pub(super) fn age(moment: Moment, now: SystemTime) -> String {
    span(now.duration_since(moment.0).unwrap_or_default())
}

/// A duration in its two largest units.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (43_140, "11h 59m"),
            (90_000, "1d 1h"),
            (7_776_000, "90d 0h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
    }
}
