//! Values that stand in the fields of many kinds.

use std::{
    collections::HashSet,
    fmt::{self, Display},
    net::IpAddr,
};

use ambit_core::{
    discovery::{Prefix, Protocol},
    model::{Labels, ObjectName},
};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::wire::Pairs;

/// Texts from an object that stand in a message are cut to this many characters.
const MAX_QUOTE: usize = 300;
/// Messages that are of no field, to this many: they tell at length what is to be done, at their end.
const MAX_SENTENCE: usize = 1_500;

/// What is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::discovery) struct FieldError {
    /// The path from the object's root; none where the object as a whole is meant.
    pub(in crate::discovery) field: Option<String>,
    /// What is wrong, as the end of a sentence that began with the field.
    pub(in crate::discovery) message: String,
}

impl FieldError {
    pub(in crate::discovery) fn new(field: impl Into<String>, message: impl Display) -> Self {
        let field = Some(field.into()).filter(|field| !field.is_empty() && field != ".");
        let most = if field.is_some() { MAX_QUOTE } else { MAX_SENTENCE };
        Self { field: field.map(|field| cut(&field)), message: cut_to(most, &message.to_string()) }
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// No API server stands before a folder to drop or refuse a field that is misspelt, and without it the object would say something
/// else: a selector that is not read selects all pods, a mode that is not read is inherited.
pub(super) fn known(value: Option<&Value>, path: &str, fields: &[&str]) -> Result<(), FieldError> {
    let mut named = value.and_then(Value::as_object).into_iter().flat_map(Map::keys);
    named.find(|name| !fields.contains(&&***name)).map_or(Ok(()), |name| {
        Err(FieldError::new(
            format!("{path}.{name}"),
            format_args!("is no field there: it has {}", fields.join(", ")),
        ))
    })
}

/// The same for what says whom an object of the security API is for.
pub(super) fn known_target(spec: Option<&Value>) -> Result<(), FieldError> {
    let part = |name: &str| spec.and_then(|spec| spec.get(name));
    const TARGET: [&str; 4] = ["group", "kind", "name", "namespace"];
    known(part("selector"), "spec.selector", &["matchLabels"])?;
    known(part("targetRef"), "spec.targetRef", &TARGET)?;
    let refs = part("targetRefs").and_then(Value::as_array).into_iter().flatten().enumerate();
    refs.into_iter().try_for_each(|(at, one)| known(Some(one), &format!("spec.targetRefs[{at}]"), &TARGET))
}

/// The name of a namespaced object; without a namespace it is in `default`.
pub(super) fn namespaced(namespace: Option<String>, name: Option<String>) -> Result<ObjectName, FieldError> {
    let namespace = match present(namespace) {
        Some(namespace) => object_name("metadata.namespace", Some(namespace))?,
        None => "default".to_owned(),
    };
    Ok(ObjectName::new(namespace, object_name("metadata.name", name)?))
}

pub(super) fn object_name(field: &str, name: Option<String>) -> Result<String, FieldError> {
    let name = present(name).ok_or_else(|| FieldError::new(field, "is missing"))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.len() > 253 || !name.chars().all(legal) || matches!(&*name, "." | "..") {
        return Err(FieldError::new(field, format_args!("{:?} is not a Kubernetes name", cut(&name))));
    }
    Ok(name)
}

pub(super) fn labels(pairs: Option<Pairs>) -> Labels {
    pairs.into_iter().flatten().map(|(key, value)| (key, value.unwrap_or_default())).collect()
}

/// Kubernetes writes an absent text as empty too.
pub(super) fn present(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// Which of the values stands there; absent and empty mean the first.
pub(super) fn choice<const N: usize>(
    field: &str,
    text: Option<String>,
    values: [&str; N],
) -> Result<usize, FieldError> {
    let Some(text) = present(text) else { return Ok(0) };
    values.iter().position(|value| *value == text).ok_or_else(|| {
        let known: Vec<_> = values.into_iter().filter(|value| !value.is_empty()).collect();
        FieldError::new(field, format_args!("{:?} is not one of {}", cut(&text), known.join(", ")))
    })
}

pub(super) fn timestamp(text: Option<String>) -> Result<Option<i64>, FieldError> {
    let Some(text) = present(text) else { return Ok(None) };
    match OffsetDateTime::parse(&text, &Rfc3339) {
        Ok(at) => Ok(Some(at.unix_timestamp())),
        Err(_) => Err(FieldError::new(
            "metadata.creationTimestamp",
            format_args!("{:?} is not a time of the form 2026-01-31T12:00:00Z", cut(&text)),
        )),
    }
}

pub(super) fn address(field: &str, text: &str) -> Result<IpAddr, FieldError> {
    let ip = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    let ip = ip.map_err(|_| FieldError::new(field, format_args!("{:?} is not an IP address", cut(text))))?;
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return Err(FieldError::new(field, format_args!("{ip} cannot be the address of a pod or service")));
    }
    Ok(ip)
}

/// An address, or a network in CIDR notation.
pub(in crate::discovery) fn network(field: &str, text: &str) -> Result<Prefix, FieldError> {
    let Some((ip, len)) = text.split_once('/') else { return Ok(Prefix::single(address(field, text)?)) };
    let bad = || FieldError::new(field, format_args!("{:?} is no network", cut(text)));
    let ip: IpAddr = ip.parse().map_err(|_| bad())?;
    Prefix::new(ip, len.parse().map_err(|_| bad())?).ok_or_else(bad)
}

pub(super) fn dedup(ips: &mut Vec<IpAddr>) {
    let mut seen = HashSet::new();
    ips.retain(|ip| seen.insert(*ip));
}

pub(super) fn port_number(field: &str, number: i64) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field, format_args!("{number} is not a port (1 to 65535)"))),
    }
}

pub(super) fn protocol(field: &str, text: Option<String>) -> Result<Protocol, FieldError> {
    const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    Ok(ALL[choice(field, text, ["TCP", "UDP", "SCTP"])?])
}

pub(super) fn cut(text: &str) -> String {
    cut_to(MAX_QUOTE, text)
}

fn cut_to(most: usize, text: &str) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
