//! AuthorizationPolicies, held to what Istio's own schema and validation demand (`ValidateAuthorizationPolicy` in
//! `pkg/config/validation` of istio/istio), and to more where a mistake would open something: a field that is not known is no
//! field that may be passed over.

mod rule;

use std::sync::Arc;

use ambit_core::{
    discovery::Settings,
    model::{Labels, ObjectName},
    policy::{self, Action, Attribute, AuthorizationPolicy, Rule, Target, TrustDomains},
};
use serde_json::Value;

use super::{
    Change, FieldError, Valid,
    fields::{choice, cut, known, known_target, labels, object_name, present},
    peer_authentication::check_selector,
    root::not_mesh_wide,
    wire::{self, Metadata, Pairs},
};
use rule::Place;

/// Rules in an object, and entries in each of their lists, as in Istio's schema.
const MAX_ENTRIES: usize = 512;
/// Services and others that an object may name, as there.
const MAX_TARGETS: usize = 16;
/// Values in all fields of an object: each may have to be looked at for every connection.
const MAX_VALUES: usize = 20_000;

const DRY_RUN: &str = "istio.io/dry-run";

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
    }

    Spec {
        selector: Option<Selector>,
        target_ref: Option<TargetRef>,
        target_refs: Option<Vec<TargetRef>>,
        action: Option<String>,
        provider: Option<Provider>,
        rules: Option<Vec<Value>>,
    }

    Selector {
        match_labels: Option<Pairs>,
    }

    TargetRef {
        group: Option<String>,
        kind: Option<String>,
        name: Option<String>,
        namespace: Option<String>,
    }

    Provider {
        name: Option<String>,
    }
}

const SPEC_FIELDS: [&str; 6] = ["selector", "targetRef", "targetRefs", "action", "provider", "rules"];

/// The pods that an object is for, and what in that has no effect.
#[derive(Default)]
pub(super) struct Aim {
    pub(super) target: Option<Target>,
    pub(super) unsupported: Option<String>,
    pub(super) notice: Option<FieldError>,
}

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    known_fields(object)?;
    let Object { metadata, spec } = wire::typed(object)?;
    let spec = spec.unwrap_or_default();
    let action = action(&spec)?;
    let provider = spec.provider.and_then(|provider| present(provider.name)).map(Arc::from);
    let dry_run =
        metadata.unwrap_or_default().annotations.and_then(|mut pairs| pairs.remove(DRY_RUN).flatten());
    let (dry_run, unclear) = dry_run.as_deref().map_or((false, false), dry_run_of);
    let has_rules = spec.rules.is_some();
    let written = spec.rules.unwrap_or_default();
    let aim = aim(spec.selector, spec.target_ref, spec.target_refs)?;
    if !has_rules && matches!(action, Action::Deny | Action::Custom) {
        return Err(FieldError::new("spec.rules", "is missing: without rules DENY and CUSTOM match nothing"));
    }
    if written.len() > MAX_ENTRIES {
        return Err(FieldError::new("spec.rules", format_args!("has more than {MAX_ENTRIES} rules")));
    }
    let trust_domains = trust_domains(settings);
    let mut values = 0;
    let rules = written.iter().enumerate().map(|(at, rule)| {
        let place = Place { at, action, namespace: &name.namespace, trust_domains: &trust_domains };
        let (rule, count) = rule::read(rule, place)?;
        values += count;
        if values > MAX_VALUES {
            return Err(FieldError::new("spec.rules", format_args!("has more than {MAX_VALUES} values")));
        }
        Ok(rule)
    });
    let rules = rules.collect::<Result<Vec<_>, _>>()?;

    let idle = aim.target == Some(Target::Services(Vec::new()));
    let whole = matches!(&aim.target, Some(Target::Pods(selector)) if selector.is_empty());
    let effects = [
        whole.then(|| not_mesh_wide(&name, settings)).flatten(),
        aim.unsupported,
        provider.as_deref().and_then(|name| unknown_provider(name, settings)),
        unsupported_field(action, &rules),
    ];
    let effects: Vec<String> = effects.into_iter().flatten().collect();
    let unsupported = (!effects.is_empty()).then(|| effects.join("; "));
    let unclear = unclear.then(|| {
        FieldError::new(
            "metadata.annotations",
            format_args!("{DRY_RUN} is neither true nor false: the policy is in force"),
        )
    });
    let told = unsupported.as_deref().map(|text| FieldError::new("", text));
    let target = aim.target.unwrap_or(Target::Pods(Labels::new()));
    let blunt = blunt_denial(action, &rules);
    let policy = AuthorizationPolicy { name, target, action, provider, rules, dry_run, doubt: None };
    let change = Change::Policies(policy::Change::AuthorizationPolicy(Arc::new(policy)));
    Ok(Valid { change, notice: unclear.or(told).or(aim.notice).or(blunt), unsupported, idle })
}

/// The strictest that an object may say which cannot be read, as far as its parts can be told.
pub(super) fn unreadable(
    name: ObjectName,
    object: &Value,
    error: &FieldError,
    settings: &Settings,
) -> Change {
    // Of a version that is not known nobody can tell where it says what.
    let known = error.field.as_deref() != Some("apiVersion");
    let nothing = Value::Object(serde_json::Map::new());
    let spec = match object.get("spec") {
        None | Some(Value::Null) => &nothing,
        Some(spec) => spec,
    };
    let part = |field: &str| spec.get(field).filter(|value| !value.is_null());
    // A field that is not known may stand for one that says whom it selects, or what it does.
    let whole = known && spec.is_object() && known_fields(object).is_ok();
    let action = whole.then(|| readable_action(part("action"), part("provider"))).flatten();
    let target =
        whole.then(|| readable_target([part("selector"), part("targetRef"), part("targetRefs")])).flatten();
    let rules = part("rules").and_then(Value::as_array).filter(|rules| whole && rules.len() <= MAX_ENTRIES);
    let trust_domains = trust_domains(settings);
    let rules = rules.zip(action).map(|(rules, action)| {
        let place = |at| Place { at, action, namespace: &name.namespace, trust_domains: &trust_domains };
        let one = |(at, rule)| rule::read(rule, place(at)).ok().map(|(rule, _)| rule);
        rules.iter().enumerate().map(one).collect::<Vec<Option<Rule>>>()
    });
    let annotation = |value: &Value| value.as_str().is_some_and(|text| dry_run_of(text).0);
    let dry_run = known && object.pointer("/metadata/annotations/istio.io~1dry-run").is_some_and(annotation);
    let policy = AuthorizationPolicy::unreadable(name, target, action, rules, dry_run);
    Change::Policies(policy::Change::AuthorizationPolicy(Arc::new(policy)))
}

fn readable_action(action: Option<&Value>, provider: Option<&Value>) -> Option<Action> {
    let action = match action {
        None => None,
        Some(action) => Some(action.as_str()?.to_owned()),
    };
    let provider = match provider {
        None => None,
        Some(provider) => Some(wire::typed::<Provider>(provider).ok()?),
    };
    self::action(&Spec { action, provider, ..Spec::default() }).ok()
}

pub(super) fn readable_target([selector, target_ref, target_refs]: [Option<&Value>; 3]) -> Option<Target> {
    let selector = selector.map(wire::typed).transpose().ok()?;
    let target_ref = target_ref.map(wire::typed).transpose().ok()?;
    let refs =
        |value: &Value| value.as_array()?.iter().map(|one| wire::typed(one).ok()).collect::<Option<Vec<_>>>();
    let target_refs = match target_refs {
        None => None,
        Some(value) => Some(refs(value)?),
    };
    let aim = aim(selector, target_ref, target_refs).ok()?;
    Some(aim.target.unwrap_or(Target::Pods(Labels::new())))
}

/// Whether all fields are known that say whom the object is for and what it does.
fn known_fields(object: &Value) -> Result<(), FieldError> {
    let spec = object.get("spec");
    known(spec, "spec", &SPEC_FIELDS)?;
    known(spec.and_then(|spec| spec.get("provider")), "spec.provider", &["name"])?;
    known_target(spec)
}

fn trust_domains(settings: &Settings) -> TrustDomains {
    TrustDomains::new(settings.trust_domain.clone(), settings.trust_domain_aliases.iter().cloned())
}

fn action(spec: &Spec) -> Result<Action, FieldError> {
    const ALL: [Action; 4] = [Action::Allow, Action::Deny, Action::Audit, Action::Custom];
    let action = ALL[choice("spec.action", spec.action.clone(), ["ALLOW", "DENY", "AUDIT", "CUSTOM"])?];
    let provider = spec.provider.as_ref().map(|provider| present(provider.name.clone()));
    match (action, provider) {
        (Action::Custom, Some(Some(_))) => {}
        (Action::Custom, _) => {
            return Err(FieldError::new("spec.provider.name", "is missing: CUSTOM asks a provider"));
        }
        (_, Some(_)) => return Err(FieldError::new("spec.provider", "goes with CUSTOM only")),
        (_, None) => {}
    }
    Ok(action)
}

/// As Go's `strconv.ParseBool` has it: whether it is so, and whether that is unclear.
fn dry_run_of(text: &str) -> (bool, bool) {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => (true, false),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => (false, false),
        _ => (false, true),
    }
}

/// Whom the object is for; the whole namespace where it does not say.
pub(super) fn aim(
    selector: Option<Selector>,
    target_ref: Option<TargetRef>,
    target_refs: Option<Vec<TargetRef>>,
) -> Result<Aim, FieldError> {
    let target_refs = target_refs.filter(|refs| !refs.is_empty());
    let ways = [selector.is_some(), target_ref.is_some(), target_refs.is_some()];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        return Err(FieldError::new("spec", "has more than one of selector, targetRef and targetRefs"));
    }
    let refs = match (target_ref, target_refs) {
        (Some(one), _) => vec![("spec.targetRef".to_owned(), one)],
        (None, Some(refs)) if refs.len() > MAX_TARGETS => {
            return Err(FieldError::new(
                "spec.targetRefs",
                format_args!("has more than {MAX_TARGETS} entries"),
            ));
        }
        (None, refs) => {
            let refs = refs.into_iter().flatten().enumerate();
            refs.map(|(at, one)| (format!("spec.targetRefs[{at}]"), one)).collect()
        }
    };
    if !refs.is_empty() {
        return services(refs);
    }
    let named = selector.is_some();
    let selector = labels(selector.and_then(|selector| selector.match_labels));
    check_selector(&selector)?;
    let message = "has no labels: the object is for the whole namespace";
    let notice = (named && selector.is_empty()).then(|| FieldError::new("spec.selector", message));
    Ok(Aim { target: Some(Target::Pods(selector)), unsupported: None, notice })
}

/// The services among the targets.
fn services(refs: Vec<(String, TargetRef)>) -> Result<Aim, FieldError> {
    let mut services: Vec<Arc<str>> = Vec::new();
    let mut unsupported = None;
    for (field, TargetRef { group, kind, name, namespace }) in refs {
        if present(namespace).is_some() {
            return Err(FieldError::new(
                format!("{field}.namespace"),
                "must be empty: it is the policy's own",
            ));
        }
        let name = object_name(&format!("{field}.name"), name)?;
        let (group, kind) = (present(group), present(kind).unwrap_or_default());
        match (group.as_deref(), &*kind) {
            (None | Some("core"), "Service") => services.push(name.into()),
            (Some("networking.istio.io"), "ServiceEntry")
            | (Some("gateway.networking.k8s.io"), "Gateway" | "GatewayClass") => {
                unsupported
                    .get_or_insert(format!("{field}: a {kind} is no target here; the policy is not for it"));
            }
            _ => {
                let what = cut(&format!("{}/{kind}", group.as_deref().unwrap_or_default()));
                let message =
                    format!("{what:?} is not Service, ServiceEntry, Gateway or GatewayClass of its group");
                return Err(FieldError::new(format!("{field}.kind"), message));
            }
        }
    }
    Ok(Aim { target: Some(Target::Services(services)), unsupported, notice: None })
}

/// What a CUSTOM policy comes to that names a provider which nobody knows.
fn unknown_provider(name: &str, settings: &Settings) -> Option<String> {
    let known: Vec<&str> = settings.providers.iter().map(|known| &**known).collect();
    let list =
        if known.is_empty() { "there is none".to_owned() } else { format!("there is {}", known.join(", ")) };
    (!known.contains(&name)).then(|| {
        format!(
            "spec.provider.name: {:?} is none of the extension providers ({list}): what the policy matches is refused",
            cut(name)
        )
    })
}

/// What becomes of rules that name what is never known here.
fn unsupported_field(action: Action, rules: &[Rule]) -> Option<String> {
    let unsupported = |rule: &Rule| {
        let field = rule.fields().find(|field| field.attribute() == Attribute::Unsupported);
        field.map(|field| field.name().to_owned())
    };
    let (at, field) = rules.iter().enumerate().find_map(|(at, rule)| Some((at, unsupported(rule)?)))?;
    let effect = match action {
        Action::Allow => "a rule with it allows nothing",
        Action::Deny | Action::Audit | Action::Custom => "the rule matches by the rest of it",
    };
    Some(format!("spec.rules[{at}].{field}: its key is not supported: {effect}"))
}

/// A DENY rule of which nothing can be told without HTTP refuses whatever is not HTTP.
fn blunt_denial(action: Action, rules: &[Rule]) -> Option<FieldError> {
    let at = rules.iter().position(Rule::is_unknown).filter(|_| action == Action::Deny)?;
    Some(FieldError::new(
        format!("spec.rules[{at}]"),
        "names only what HTTP tells, and no port: it refuses every connection that is not HTTP; name the ports that it is for",
    ))
}
