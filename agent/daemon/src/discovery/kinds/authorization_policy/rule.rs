//! One rule of an AuthorizationPolicy.

use ambit_core::policy::{Action, Attribute, Context, Field, Rule, TrustDomains};
use serde_json::{Map, Value};

use super::{
    super::{FieldError, fields::cut},
    MAX_ENTRIES,
};

/// Where a rule stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) at: usize,
    pub(super) action: Action,
    pub(super) namespace: &'a str,
    pub(super) trust_domains: &'a TrustDomains,
}

/// Fields of `source` and `operation`; each has a negation, as `notPrincipals`.
const SOURCE: [(&str, Attribute); 7] = [
    ("principals", Attribute::Principal),
    ("requestPrincipals", Attribute::Layer7),
    ("namespaces", Attribute::Namespace),
    ("serviceAccounts", Attribute::ServiceAccount),
    ("ipBlocks", Attribute::SourceIp),
    ("remoteIpBlocks", Attribute::RemoteIp),
    ("trustDomains", Attribute::TrustDomain),
];
const OPERATION: [(&str, Attribute); 4] = [
    ("hosts", Attribute::Layer7),
    ("ports", Attribute::Port),
    ("methods", Attribute::Layer7),
    ("paths", Attribute::Layer7),
];
const KEYS: [(&str, Attribute); 12] = [
    ("source.ip", Attribute::SourceIp),
    ("remote.ip", Attribute::RemoteIp),
    ("source.principal", Attribute::Principal),
    ("source.namespace", Attribute::Namespace),
    ("source.serviceAccount", Attribute::ServiceAccount),
    ("source.trustDomain", Attribute::TrustDomain),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::Port),
    ("connection.sni", Attribute::Layer7),
    ("request.auth.principal", Attribute::Layer7),
    ("request.auth.audiences", Attribute::Layer7),
    ("request.auth.presenter", Attribute::Layer7),
];
/// Keys that go on with `[…]`.
const KEYS_WITH_NAME: [&str; 2] = ["request.headers", "request.auth.claims"];
const TOKEN_KEYS: &str = "request.auth.";
const FILTER_KEYS: &str = "experimental.envoy.filters.";

/// Reads a rule; answers with the number of its values, too.
pub(super) fn read(rule: &Value, place: Place<'_>) -> Result<(Rule, usize), FieldError> {
    let mut reader = Reader { place, values: 0 };
    let path = format!("spec.rules[{}]", place.at);
    let fields = object(rule, &path)?;
    only(fields, &path, |name| ["from", "to", "when"].contains(&name))?;
    let from = reader.alternatives(fields, &path, "from", "source", &SOURCE)?;
    let to = reader.alternatives(fields, &path, "to", "operation", &OPERATION)?;
    let when = reader.conditions(fields, &path)?;
    Ok((Rule::new(from, to, when), reader.values))
}

struct Reader<'a> {
    place: Place<'a>,
    values: usize,
}

impl Reader<'_> {
    fn alternatives(
        &mut self,
        rule: &Map<String, Value>,
        path: &str,
        list: &str,
        item: &str,
        known: &[(&'static str, Attribute)],
    ) -> Result<Vec<Vec<Field>>, FieldError> {
        let path = format!("{path}.{list}");
        let Some(items) = items(rule, list, &path)? else { return Ok(Vec::new()) };
        if items.is_empty() {
            return Err(FieldError::new(&*path, "is an empty list: leave it out, or name one"));
        }
        let mut alternatives = Vec::with_capacity(items.len());
        for (at, entry) in items.iter().enumerate() {
            let path = format!("{path}[{at}]");
            let entry = object(entry, &path)?;
            only(entry, &path, |name| name == item)?;
            let path = format!("{path}.{item}");
            let fields = object(entry.get(item).unwrap_or(&Value::Null), &path)?;
            alternatives.push(self.fields(fields, &path, known)?);
        }
        Ok(alternatives)
    }

    /// The fields of one source or operation.
    fn fields(
        &mut self,
        fields: &Map<String, Value>,
        path: &str,
        known: &[(&'static str, Attribute)],
    ) -> Result<Vec<Field>, FieldError> {
        let mut read = Vec::new();
        for (name, values) in fields {
            let path = format!("{path}.{name}");
            let found = known.iter().find_map(|(field, attribute)| {
                let negated = name.strip_prefix("not").is_some_and(|rest| capitalised(field) == rest);
                (negated || name == field).then_some((*attribute, negated))
            });
            let Some((attribute, negated)) = found else {
                return Err(FieldError::new(path, "is no field that is known"));
            };
            read.extend(self.field(&path, attribute, negated, values)?);
        }
        if read.is_empty() {
            return Err(FieldError::new(path, "is empty: leave it out, or say what it is to match"));
        }
        let accounts = |name: &str| ["serviceAccounts", "notServiceAccounts"].contains(&name);
        let others =
            |name: &str| ["principals", "notPrincipals", "namespaces", "notNamespaces"].contains(&name);
        let named =
            |is: &dyn Fn(&str) -> bool| fields.iter().any(|(name, values)| is(name) && !is_absent(values));
        if named(&accounts) && named(&others) {
            return Err(FieldError::new(path, "has serviceAccounts beside principals or namespaces"));
        }
        Ok(read)
    }

    fn conditions(&mut self, rule: &Map<String, Value>, path: &str) -> Result<Vec<Field>, FieldError> {
        let path = format!("{path}.when");
        let mut read = Vec::new();
        for (at, condition) in items(rule, "when", &path)?.into_iter().flatten().enumerate() {
            let path = format!("{path}[{at}]");
            let fields = object(condition, &path)?;
            only(fields, &path, |name| ["key", "values", "notValues"].contains(&name))?;
            let key = fields.get("key").and_then(Value::as_str).unwrap_or_default();
            let attribute = attribute_of(key, &format!("{path}.key"))?;
            self.check_custom(&format!("{path}.key"), attribute, key.starts_with(TOKEN_KEYS))?;
            let before = read.len();
            for (name, negated) in [("values", false), ("notValues", true)] {
                let values = fields.get(name).unwrap_or(&Value::Null);
                read.extend(self.field(&format!("{path}.{name}"), attribute, negated, values)?);
            }
            if read.len() == before {
                return Err(FieldError::new(path, "has neither values nor notValues"));
            }
        }
        Ok(read)
    }

    /// One list of values; one that is absent or empty says nothing.
    fn field(
        &mut self,
        path: &str,
        attribute: Attribute,
        negated: bool,
        values: &Value,
    ) -> Result<Option<Field>, FieldError> {
        if is_absent(values) {
            return Ok(None);
        }
        let values = values.as_array().ok_or_else(|| FieldError::new(path, "is not a list of texts"))?;
        let texts = values.iter().enumerate().map(|(at, value)| {
            let text = value.as_str().map(str::to_owned);
            text.ok_or_else(|| FieldError::new(format!("{path}[{at}]"), "is not a text: put it in quotes"))
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        self.values += texts.len();
        self.check_custom(path, attribute, path.to_lowercase().ends_with("requestprincipals"))?;
        let bad = texts.iter().position(|text| !is_path(text));
        if let Some(at) = bad.filter(|_| path.ends_with(".paths") || path.ends_with(".notPaths")) {
            let message = format!(
                "{:?}: {{*}} and {{**}} stand for whole segments, and none follows {{**}}",
                cut(&texts[at])
            );
            return Err(FieldError::new(format!("{path}[{at}]"), message));
        }
        let Place { at, namespace, trust_domains, .. } = self.place;
        let name = path.strip_prefix(&format!("spec.rules[{at}].")).unwrap_or(path);
        let field = Field::new(name, attribute, negated, &texts, Context { namespace, trust_domains });
        field.map(Some).map_err(|error| match error.at {
            Some(at) => FieldError::new(
                format!("{path}[{at}]"),
                format_args!("{:?} {}", cut(&texts[at]), error.problem),
            ),
            None => FieldError::new(path, error.problem),
        })
    }

    /// A provider is asked before anybody is known.
    fn check_custom(&self, path: &str, attribute: Attribute, of_token: bool) -> Result<(), FieldError> {
        use Attribute::{Namespace, Principal, ServiceAccount, TrustDomain};
        let identity = of_token || matches!(attribute, Principal | Namespace | ServiceAccount | TrustDomain);
        if self.place.action == Action::Custom && identity {
            return Err(FieldError::new(
                path,
                "cannot stand in a CUSTOM policy: it is asked before anybody is known",
            ));
        }
        Ok(())
    }
}

/// What a condition tests.
fn attribute_of(key: &str, path: &str) -> Result<Attribute, FieldError> {
    if key.is_empty() {
        return Err(FieldError::new(path, "is missing, or not a text"));
    }
    let named = |start: &&str| {
        let rest = key.strip_prefix(*start).and_then(|rest| rest.strip_prefix('['));
        rest.and_then(|rest| rest.strip_suffix(']')).is_some_and(|name| !name.is_empty())
    };
    let known = KEYS.iter().find(|(known, _)| *known == key).map(|(_, attribute)| *attribute);
    let layer7 =
        || (KEYS_WITH_NAME.iter().any(named) || key.starts_with(FILTER_KEYS)).then_some(Attribute::Layer7);
    known
        .or_else(layer7)
        .ok_or_else(|| FieldError::new(path, format_args!("{:?} is no attribute that is known", cut(key))))
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, FieldError> {
    value.as_object().ok_or_else(|| FieldError::new(path, "is not an object"))
}

/// A list that may be absent.
fn items<'a>(
    fields: &'a Map<String, Value>,
    name: &str,
    path: &str,
) -> Result<Option<&'a Vec<Value>>, FieldError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(items)) if items.len() > MAX_ENTRIES => {
            Err(FieldError::new(path, format_args!("has more than {MAX_ENTRIES} entries")))
        }
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(_) => Err(FieldError::new(path, "is not a list")),
    }
}

/// A field that is not known may be a misspelt one, without which the rule would match more.
fn only(fields: &Map<String, Value>, path: &str, known: impl Fn(&str) -> bool) -> Result<(), FieldError> {
    let unknown = fields.keys().find(|name| !known(name));
    unknown.map_or(Ok(()), |name| Err(FieldError::new(format!("{path}.{name}"), "is no field that is known")))
}

fn is_absent(values: &Value) -> bool {
    values.is_null() || values.as_array().is_some_and(Vec::is_empty)
}

fn capitalised(name: &str) -> String {
    name[..1].to_uppercase() + &name[1..]
}

/// Whether a path is a template that can be one, or none.
fn is_path(path: &str) -> bool {
    if !path.contains("{*}") && !path.contains("{**}") {
        return true;
    }
    let literal =
        |segment: &str| segment.chars().all(|c| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c));
    let mut rest = false;
    path.starts_with('/')
        && path[1..].split('/').all(|segment| {
            let operator = segment == "{*}" || segment == "{**}";
            let fits = if operator { !rest } else { literal(segment) };
            rest |= segment == "{**}";
            fits
        })
}
