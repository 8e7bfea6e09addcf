//! Where in a trace a request is, as its headers say: W3C Trace Context (<https://www.w3.org/TR/trace-context/>), else B3
//! (<https://github.com/openzipkin/b3-propagation>) in one header or several.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Place;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The longest `tracestate` that is told of.
const MAX_STATE: usize = 512;

/// What a request says of its trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::telemetry) struct Context {
    /// Of the trace, and of the span of whoever sent the request.
    pub(super) ids: Option<(u128, u64)>,
    /// Whether it is sampled, if that is decided.
    pub(super) sampled: Option<bool>,
    pub(super) state: String,
}

impl Context {
    /// `None` where nothing that can be read is said.
    pub(in crate::telemetry) fn of(headers: &HeaderMap) -> Option<Self> {
        w3c(headers).or_else(|| b3(headers)).or_else(|| b3_multi(headers))
    }

    /// The trace, in 32 digits.
    pub(in crate::telemetry) fn trace_id(&self) -> Option<String> {
        self.ids.map(|(trace, _)| format!("{trace:032x}"))
    }
}

/// Tells who comes next of our span, in the ways in which the client told of its own; in W3C's where it did not.
pub(super) fn write(place: &Place, headers: &mut HeaderMap) {
    let Place { trace_id, span_id, parent, .. } = place;
    let (trace, span) = (format!("{trace_id:032x}"), format!("{span_id:016x}"));
    let parent = parent.map(|parent| format!("{parent:016x}"));
    let [w3c, single, multi] = [TRACEPARENT, B3, B3_TRACE].map(|name| headers.contains_key(name));
    let mut set = |name: HeaderName, value: &str| {
        // Of digits and dashes.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    if w3c || !(single || multi) {
        set(TRACEPARENT, &format!("00-{trace}-{span}-01"));
    }
    if single {
        let parent = parent.as_ref().map(|parent| format!("-{parent}")).unwrap_or_default();
        set(B3, &format!("{trace}-{span}-1{parent}"));
    }
    if multi {
        set(B3_TRACE, &trace);
        set(B3_SPAN, &span);
        set(B3_SAMPLED, "1");
        if let Some(parent) = &parent {
            set(B3_PARENT, parent);
        }
    }
}

/// `traceparent`: version, trace, span and flags. One that breaks the rules counts as none.
fn w3c(headers: &HeaderMap) -> Option<Context> {
    let text = only(headers, &TRACEPARENT)?;
    let (version, rest) = (text.get(..2)?, text.get(2..)?);
    let version = hex(version, 2)?;
    let mut parts = rest.strip_prefix('-')?.splitn(4, '-');
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    // Later versions may have more behind.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let ids = ids(hex(trace, 32)?, hex(span, 16)?)?;
    let state = headers.get(TRACESTATE).and_then(|state| state.to_str().ok()).unwrap_or_default();
    let state = if state.len() > MAX_STATE { String::new() } else { state.to_owned() };
    Some(Context { ids: Some(ids), sampled: Some(hex(flags, 2)? & 1 == 1), state })
}

/// `b3`: trace, span, perhaps the decision, perhaps the parent; or the decision alone.
fn b3(headers: &HeaderMap) -> Option<Context> {
    let text = only(headers, &B3)?;
    let mut parts = text.split('-');
    let first = parts.next()?;
    let Some(span) = parts.next() else {
        return Some(Context { sampled: Some(decision(first)?), ..Context::default() });
    };
    let ids = ids(b3_trace(first)?, hex(span, 16)?)?;
    let sampled = parts.next().map(|sampled| decision(sampled).ok_or(())).transpose().ok()?;
    Some(Context { ids: Some(ids), sampled, state: String::new() })
}

fn b3_multi(headers: &HeaderMap) -> Option<Context> {
    let debug = only(headers, &B3_FLAGS) == Some("1");
    let stated = only(headers, &B3_SAMPLED).and_then(decision);
    let sampled = if debug { Some(true) } else { stated };
    let ids = only(headers, &B3_TRACE)
        .zip(only(headers, &B3_SPAN))
        .and_then(|(trace, span)| ids(b3_trace(trace)?, hex(span, 16)?));
    (ids.is_some() || sampled.is_some()).then(|| Context { ids, sampled, state: String::new() })
}

/// 1, 0, or d, for one that somebody wants to see whatever is sampled. Old clients write true and false.
fn decision(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// In 32 digits, or in 16.
fn b3_trace(text: &str) -> Option<u128> {
    hex(text, 32).or_else(|| hex(text, 16))
}

/// None of the two may be 0.
fn ids(trace: u128, span: u128) -> Option<(u128, u64)> {
    let span = u64::try_from(span).ok()?;
    (trace != 0 && span != 0).then_some((trace, span))
}

/// A number of so many digits, in lower case.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    (text.len() == digits && text.as_bytes().iter().all(is_digit))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// The value of a field that there is once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(fields: &[(&'static str, String)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn came(fields: &[(&'static str, String)]) -> Option<Context> {
        Context::of(&headers(fields))
    }

    fn sampled(sampled: Option<bool>) -> Option<Context> {
        let ids = Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        Some(Context { ids, sampled, state: String::new() })
    }

    #[test]
    fn a_trace_is_read_in_the_ways_of_w3c_and_b3() {
        let w3c = |text: String| came(&[("traceparent", text)]);
        assert_eq!(w3c(format!("00-{TRACE}-{SPAN}-01")), sampled(Some(true)));
        assert_eq!(w3c(format!("00-{TRACE}-{SPAN}-00")), sampled(Some(false)));
        assert_eq!(w3c(format!("cc-{TRACE}-{SPAN}-01-more")), sampled(Some(true)));
        for bad in [
            String::new(),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-{SPAN}"),
            format!("00{TRACE}-{SPAN}-01"),
            "00-ü".to_owned(),
        ] {
            assert_eq!(w3c(bad.clone()), None, "{bad}");
        }
        let twice = ("traceparent", format!("00-{TRACE}-{SPAN}-01"));
        assert_eq!(came(&[twice.clone(), twice.clone()]), None);
        assert_eq!(came(&[("tracestate", "a=b".to_owned()), twice]).unwrap().state, "a=b");

        let b3 = |text: String| came(&[("b3", text)]);
        assert_eq!(b3(format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90")), sampled(Some(true)));
        assert_eq!(b3(format!("{TRACE}-{SPAN}")), sampled(None));
        assert_eq!(b3("0".to_owned()).unwrap().sampled, Some(false));
        assert_eq!(b3(format!("a3ce929d0e0e4736-{SPAN}-d")).unwrap().ids.unwrap().0, 0xa3ce_929d_0e0e_4736);
        assert_eq!(b3(format!("{TRACE}-{SPAN}-x")), None);

        let multi = [("x-b3-traceid", TRACE.to_owned()), ("x-b3-spanid", SPAN.to_owned())];
        assert_eq!(came(&multi), sampled(None));
        assert_eq!(came(&[&multi[..], &[("x-b3-flags", "1".to_owned())]].concat()), sampled(Some(true)));
        assert_eq!(came(&[]), None);
    }

    #[test]
    fn who_comes_next_is_told_in_the_same_way() {
        let place = Place { trace_id: 0xab, span_id: 0xcd, parent: Some(0xef), state: String::new() };
        let told = |fields: &[(&'static str, String)]| {
            let mut headers = headers(fields);
            write(&place, &mut headers);
            let mut all: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
            all.sort_unstable();
            all.join(" ")
        };
        let (trace, span, parent) =
            (format!("{:032x}", 0xab), format!("{:016x}", 0xcd), format!("{:016x}", 0xef));
        let w3c = format!("traceparent=00-{trace}-{span}-01");
        assert_eq!(told(&[]), w3c);
        assert_eq!(told(&[("traceparent", "x".to_owned())]), w3c);
        assert_eq!(told(&[("b3", "1".to_owned())]), format!("b3={trace}-{span}-1-{parent}"));
        let multi = told(&[("x-b3-traceid", "x".to_owned())]);
        assert_eq!(
            multi,
            format!("x-b3-parentspanid={parent} x-b3-sampled=1 x-b3-spanid={span} x-b3-traceid={trace}")
        );
    }
}
