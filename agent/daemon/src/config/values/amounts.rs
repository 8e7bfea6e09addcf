//! Durations and counts, each within its bounds.

use std::{collections::BTreeMap, num::NonZeroUsize, str::FromStr, time::Duration};

/// Of looking for the next message: longer than that, the thread should sleep.
const MIN_BUSY: Duration = Duration::from_micros(1);
const MAX_BUSY: Duration = Duration::from_millis(1);
const MIN_TTL: Duration = Duration::from_secs(10);
const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
const MAX_DRAIN: Duration = Duration::from_secs(3600);
const MAX_HOLD: Duration = Duration::from_secs(90 * 24 * 3600);
const MIN_REFRESH: Duration = Duration::from_secs(1);
const MAX_REFRESH: Duration = Duration::from_secs(24 * 3600);
const MAX_WORKERS: usize = 256;
/// The most proxies in a row that are believed.
const MAX_PROXIES: usize = 16;
/// The eBPF maps that can be given another size.
const MAPS: [&str; 7] = ["PODS", "DESTINATIONS", "ORIGINS", "BYPASS", "LISTENERS", "COUNTERS", "PROBES"];
const MAX_ENTRIES: u32 = 1 << 24;

/// The lifetime of a certificate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ttl(pub(crate) Duration);

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            ttl if ttl < MIN_TTL => Err("it must be at least 10s".to_owned()),
            ttl if ttl > MAX_TTL => Err("it must be at most 90d".to_owned()),
            ttl => Ok(Self(ttl)),
        }
    }
}

/// How long established connections may go on at the agent's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain(pub(crate) Duration);

impl FromStr for Drain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            drain if drain > MAX_DRAIN => Err("it must be at most 1h".to_owned()),
            drain => Ok(Self(drain)),
        }
    }
}

/// How long whoever asks waits for an answer.
pub(crate) type Wait = Drain;

/// How long policies outlive their definition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold(pub(crate) Duration);

impl FromStr for Hold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            hold if hold > MAX_HOLD => Err("it must be at most 90d".to_owned()),
            hold => Ok(Self(hold)),
        }
    }
}

/// How old the keys of token issuers get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRefresh(pub(crate) Duration);

impl FromStr for KeyRefresh {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            refresh if refresh < MIN_REFRESH => Err("it must be at least 1s".to_owned()),
            refresh if refresh > MAX_REFRESH => Err("it must be at most 1d".to_owned()),
            refresh => Ok(Self(refresh)),
        }
    }
}

/// How far back something is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window(pub(crate) Duration);

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text)? {
            window if window > MAX_HOLD => Err("it must be at most 90d".to_owned()),
            window => Ok(Self(window)),
        }
    }
}

/// How many certificates a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(pub(crate) u32);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(rate @ 1..=100_000) => Ok(Self(rate)),
            _ => Err("use a whole number from 1 to 100000".to_owned()),
        }
    }
}

/// How many threads carry traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers(pub(crate) NonZeroUsize);

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<NonZeroUsize>()
            .ok()
            .filter(|workers| workers.get() <= MAX_WORKERS)
            .map(Self)
            .ok_or_else(|| format!("use a whole number from 1 to {MAX_WORKERS}"))
    }
}

/// How long who has passed on a message looks for the next one before its thread sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum BusyPolling {
    /// It does not.
    Off,
    /// As long as is good where the agent may use as much of the processors as is left.
    #[default]
    Auto,
    /// So long.
    For(Duration),
}

impl FromStr for BusyPolling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => match duration(text) {
                Ok(window) if (MIN_BUSY..=MAX_BUSY).contains(&window) => Ok(Self::For(window)),
                _ => Err("use off, auto, or a time from 1us to 1ms, as 200us".to_owned()),
            },
        }
    }
}

/// How many proxies in front of a client are believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrustedProxies(pub(crate) usize);

impl FromStr for TrustedProxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let proxies = text.parse().ok().filter(|proxies| *proxies <= MAX_PROXIES);
        proxies.map(Self).ok_or_else(|| format!("use a whole number from 0 to {MAX_PROXIES}"))
    }
}

/// How many entries eBPF maps have, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapEntries(pub(crate) BTreeMap<String, u32>);

impl FromStr for MapEntries {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |part: &str| {
            let (map, entries) = part.split_once('=').unwrap_or((part, ""));
            match entries.parse() {
                Ok(entries @ 1..=MAX_ENTRIES) if MAPS.contains(&map) => Ok((map.to_owned(), entries)),
                _ => Err(format!(
                    "{part:?}: use MAP=N, the map one of {}, N a whole number from 1 to {MAX_ENTRIES}",
                    MAPS.join(", ")
                )),
            }
        };
        text.split(',').map(entry).collect::<Result<_, _>>().map(Self)
    }
}

/// As `humantime` reads it: numbers with units, such as `90s`, `1h30m` or `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => format!("{text:?} is too long a time"),
        _ => format!("{text:?} is no duration: use a number with a unit, such as 90s, 10m, 24h or 30d"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_units() {
        for (text, seconds) in [
            ("90s", 90),
            ("10m", 600),
            ("24h", 86_400),
            ("1d", 86_400),
            ("1h30m", 5_400),
            ("2d12h", 216_000),
            ("1d1h1m1s", 90_061),
            ("1h 30m", 5_400),
            ("10min", 600),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "10", "s", "-5m", "99999999999999999999s", "h1", "10µ", "1h30", "1x"] {
            assert!(duration(bad).is_err(), "{bad} was taken");
        }
        let error = "18446744073709551615d".parse::<Ttl>().unwrap_err();
        assert!(error.contains("too long"), "{error}");
    }

    #[test]
    fn maps_have_names_and_sizes() {
        let entries = |text: &str| text.parse::<MapEntries>().map(|entries| entries.0);
        let two = [("BYPASS".to_owned(), 8), ("PODS".to_owned(), 16_777_216)];
        assert_eq!(entries("PODS=16777216,BYPASS=8"), Ok(two.into()));
        for bad in ["", "PODS", "PODS=", "PODS=0", "PODS=16777217", "pods=1", "NETNS=1", "PODS=1,"] {
            let error = entries(bad).unwrap_err();
            assert!(error.contains("DESTINATIONS"), "{bad}: {error}");
        }
    }

    #[test]
    fn durations_have_bounds() {
        for (text, taken) in
            [("10s", true), ("9s", false), ("90d", true), ("90d1s", false), ("9999ms", false)]
        {
            assert_eq!(text.parse::<Ttl>().is_ok(), taken, "{text}");
        }
        for (text, taken) in [("0s", true), ("90d", true), ("91d", false)] {
            assert_eq!(text.parse::<Hold>().is_ok(), taken, "{text}");
        }
        for (text, taken) in [("1s", true), ("999ms", false), ("1d", true), ("25h", false)] {
            assert_eq!(text.parse::<KeyRefresh>().is_ok(), taken, "{text}");
        }
        for (text, taken) in [("0s", true), ("1h", true), ("1h1s", false)] {
            assert_eq!(text.parse::<Drain>().is_ok(), taken, "{text}");
        }
    }
}
