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
const SOURCE: [(&str, Attribute<'static>); 7] = [
    ("principals", Attribute::Principal),
    ("requestPrincipals", Attribute::RequestPrincipal),
    ("namespaces", Attribute::Namespace),
    ("serviceAccounts", Attribute::ServiceAccount),
    ("ipBlocks", Attribute::SourceIp),
    ("remoteIpBlocks", Attribute::RemoteIp),
    ("trustDomains", Attribute::TrustDomain),
];
const OPERATION: [(&str, Attribute<'static>); 4] = [
    ("hosts", Attribute::Host),
    ("ports", Attribute::Port),
    ("methods", Attribute::Method),
    ("paths", Attribute::Path),
];
const KEYS: [(&str, Attribute<'static>); 12] = [
    ("source.ip", Attribute::SourceIp),
    ("remote.ip", Attribute::RemoteIp),
    ("source.principal", Attribute::Principal),
    ("source.namespace", Attribute::Namespace),
    ("source.serviceAccount", Attribute::ServiceAccount),
    ("source.trustDomain", Attribute::TrustDomain),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::Port),
    ("connection.sni", Attribute::Sni),
    ("request.auth.principal", Attribute::RequestPrincipal),
    ("request.auth.audiences", Attribute::Audience),
    ("request.auth.presenter", Attribute::Presenter),
];
const HEADER_KEYS: &str = "request.headers";
const CLAIM_KEYS: &str = "request.auth.claims";
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
        known: &[(&'static str, Attribute<'static>)],
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
        known: &[(&'static str, Attribute<'static>)],
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
            self.check_custom(&format!("{path}.key"), attribute)?;
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
        attribute: Attribute<'_>,
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
        self.check_custom(path, attribute)?;
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
    fn check_custom(&self, path: &str, attribute: Attribute<'_>) -> Result<(), FieldError> {
        let identity = matches!(
            attribute,
            Attribute::Principal
                | Attribute::Namespace
                | Attribute::ServiceAccount
                | Attribute::TrustDomain
                | Attribute::RequestPrincipal
                | Attribute::Audience
                | Attribute::Presenter
                | Attribute::Claim(_)
        );
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
fn attribute_of<'a>(key: &'a str, path: &str) -> Result<Attribute<'a>, FieldError> {
    if key.is_empty() {
        return Err(FieldError::new(path, "is missing, or not a text"));
    }
    let known = || KEYS.iter().find(|(known, _)| *known == key).map(|(_, attribute)| *attribute);
    let header =
        || Some(Attribute::Header(&bracketed(key, HEADER_KEYS)?[1..key.len() - HEADER_KEYS.len() - 1]));
    let claim = || bracketed(key, CLAIM_KEYS).map(Attribute::Claim);
    let filter = || key.starts_with(FILTER_KEYS).then_some(Attribute::Unsupported);
    known()
        .or_else(header)
        .or_else(claim)
        .or_else(filter)
        .ok_or_else(|| FieldError::new(path, format_args!("{:?} is no attribute that is known", cut(key))))
}

/// What follows `start`, if it is something in brackets.
fn bracketed<'a>(key: &'a str, start: &str) -> Option<&'a str> {
    let rest = key.strip_prefix(start)?;
    let within = rest.strip_prefix('[')?.strip_suffix(']')?;
    (!within.is_empty()).then_some(rest)
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
