//! What is watched of requests, and where traces go.

use std::str::FromStr;

/// Parts of a whole that a share is counted in: hundredths of a percent.
pub(crate) const WHOLE: u32 = 10_000;

/// Whose requests are counted and logged where no policy needs them read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HttpTelemetry {
    /// Nobody's, but of pods and namespaces that ask for it.
    #[default]
    Policy,
    /// Those of all pods, but of those that want none.
    All,
}

impl FromStr for HttpTelemetry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "policy" => Ok(Self::Policy),
            "all" => Ok(Self::All),
            _ => Err("use policy (where policies read requests) or all (of all pods in the mesh)".to_owned()),
        }
    }
}

/// The address of a collector of spans.
#[derive(Clone, Debug)]
pub(crate) struct CollectorUrl(pub(crate) http::Uri);

impl FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = text.parse::<http::Uri>().ok().filter(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && matches!(uri.path(), "" | "/")
                && uri.query().is_none()
                && uri.authority().is_some_and(|host| !host.as_str().contains('@') && !host.host().is_empty())
        });
        uri.map(Self).ok_or_else(|| {
            "use http://HOST:PORT or https://HOST:PORT without a path: OTLP over gRPC, by default on port 4317"
                .to_owned()
        })
    }
}

/// A share in percent, kept in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling(pub(crate) u32);

impl FromStr for Sampling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "use a number from 0 to 100, with two decimals at most, such as 0.5".to_owned();
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || whole.len() > 3 || decimals.len() > 2 {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let hundredths: u32 = format!("{decimals:0<2}").parse().map_err(|_| wrong())?;
        Some(whole * 100 + hundredths).filter(|share| *share <= WHOLE).map(Self).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_percent() {
        for (text, share) in
            [("0", 0), ("1", 100), ("0.5", 50), ("0.05", 5), ("100", 10_000), ("99.99", 9_999)]
        {
            assert_eq!(text.parse(), Ok(Sampling(share)), "{text}");
        }
        for bad in ["", "101", "100.01", "1.234", "-1", "a", "1.", ".5", "1e1", "0x1"] {
            assert!(bad.parse::<Sampling>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_collector_has_a_host_and_no_path() {
        for good in ["http://127.0.0.1:4317", "https://otel.example:4317/", "http://[::1]:4317"] {
            assert!(good.parse::<CollectorUrl>().is_ok(), "{good}");
        }
        for bad in ["", "otel:4317", "grpc://otel:4317", "http://otel:4317/v1/traces", "http://u:p@otel:4317"]
        {
            assert!(bad.parse::<CollectorUrl>().is_err(), "{bad}");
        }
    }
}
