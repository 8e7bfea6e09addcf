//! PeerAuthentications, held to what Istio's own validation demands (`ValidatePeerAuthentication` in
//! `pkg/config/validation` of istio/istio): no API server stands before a folder, and a webhook may be off.

use std::{collections::BTreeMap, sync::Arc};

use ambit_core::{
    discovery::Settings,
    model::{Labels, ObjectName},
    policy::{self, Mode, PeerAuthentication},
};
use serde_json::Value;

use super::{
    Change, FieldError, Valid,
    fields::{choice, cut, known, labels, timestamp},
    root::not_mesh_wide,
    wire::{self, Metadata, Pairs},
};

/// What DISABLE comes to: a node proxy cannot refuse the tunnel.
const DISABLE_EFFECT: &str =
    "DISABLE has the effect of PERMISSIVE: mutual TLS from the mesh is accepted beside plaintext";

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
    }

    Spec {
        selector: Option<Selector>,
        mtls: Option<MutualTls>,
        port_level_mtls: Option<BTreeMap<String, Option<MutualTls>>>,
    }

    Selector {
        match_labels: Option<Pairs>,
    }

    MutualTls {
        mode: Option<String>,
    }
}

const SPEC_FIELDS: [&str; 3] = ["selector", "mtls", "portLevelMtls"];

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    known_fields(object)?;
    let Object { metadata, spec } = wire::typed(object)?;
    let metadata = metadata.unwrap_or_default();
    let spec = spec.unwrap_or_default();
    let named_selector = spec.selector.is_some();
    let selector = labels(spec.selector.and_then(|selector| selector.match_labels));
    check_selector(&selector)?;
    let mode = mode("spec.mtls.mode", spec.mtls)?;
    let port_modes = match spec.port_level_mtls {
        None => BTreeMap::new(),
        Some(_) if selector.is_empty() => {
            let message = "needs a selector with matchLabels: it cannot speak for a whole namespace";
            return Err(FieldError::new("spec.portLevelMtls", message));
        }
        Some(ports) if ports.is_empty() => {
            return Err(FieldError::new("spec.portLevelMtls", "is empty"));
        }
        Some(ports) => port_modes(ports)?,
    };
    let selects = if name.namespace == settings.root_namespace && !selector.is_empty() {
        Some("has no effect: in the root namespace an object with a selector is ignored")
    } else if named_selector && selector.is_empty() {
        Some("has no labels: the object speaks for the whole namespace")
    } else {
        None
    };
    let narrow = selector.is_empty().then(|| not_mesh_wide(&name, settings)).flatten();
    let created = timestamp(metadata.creation_timestamp)?;
    let policy = PeerAuthentication { name, created, selector, mode, port_modes, doubt: None };
    let selects = selects.map(|message| FieldError::new("spec.selector", message));
    let narrow = narrow.map(|text| FieldError::new("metadata.namespace", text));
    let mut notices: Vec<FieldError> = [selects, disabled(&policy), narrow].into_iter().flatten().collect();
    let notice = match notices.len() {
        0 | 1 => notices.pop(),
        _ => {
            let texts: Vec<String> = notices.iter().map(ToString::to_string).collect();
            Some(FieldError { field: None, message: texts.join("; ") })
        }
    };
    // Whoever looks at the object and whoever looks at the agents is told the same.
    let unsupported = notice.as_ref().map(ToString::to_string);
    let change = Change::Policies(policy::Change::PeerAuthentication(Arc::new(policy)));
    Ok(Valid { change, notice, unsupported, idle: false })
}

/// The strictest that an object may say which cannot be read: STRICT for what it selects, as far as that can be told.
pub(super) fn unreadable(name: ObjectName, object: &Value, error: &FieldError, _: &Settings) -> Change {
    let part = |pointer: &str| object.pointer(pointer).filter(|value| !value.is_null());
    let created = match part("/metadata").map(Value::is_object) {
        Some(false) => None,
        _ => match part("/metadata/creationTimestamp") {
            None => Some(None),
            Some(stamp) => stamp.as_str().and_then(|text| timestamp(Some(text.to_owned())).ok()),
        },
    };
    // Of a version that is not known nobody can tell where it says whom it selects.
    let known = error.field.as_deref() != Some("apiVersion");
    let selector = known.then(|| readable_selector(object)).flatten();
    let policy = PeerAuthentication::unreadable(name, created, selector);
    Change::Policies(policy::Change::PeerAuthentication(Arc::new(policy)))
}

/// Whether all fields are known that say whom the object selects and what it demands.
fn known_fields(object: &Value) -> Result<(), FieldError> {
    let spec = object.get("spec");
    let part = |name: &str| spec.and_then(|spec| spec.get(name));
    known(spec, "spec", &SPEC_FIELDS)?;
    known(part("selector"), "spec.selector", &["matchLabels"])?;
    known(part("mtls"), "spec.mtls", &["mode"])?;
    let ports = part("portLevelMtls").and_then(Value::as_object).into_iter().flatten();
    ports
        .into_iter()
        .try_for_each(|(port, mtls)| known(Some(mtls), &format!("spec.portLevelMtls.{port}"), &["mode"]))
}

/// Whom the object selects; none if that cannot be told.
fn readable_selector(object: &Value) -> Option<Labels> {
    let spec = match object.get("spec") {
        None | Some(Value::Null) => return Some(Labels::new()),
        Some(spec) => spec.as_object()?,
    };
    // A field that is not known may stand for the one that says whom it selects.
    known(object.get("spec"), "spec", &SPEC_FIELDS).ok()?;
    known(spec.get("selector"), "spec.selector", &["matchLabels"]).ok()?;
    let selector = match spec.get("selector") {
        None | Some(Value::Null) => return Some(Labels::new()),
        Some(selector) => wire::typed::<Selector>(selector).ok()?,
    };
    let selector = labels(selector.match_labels);
    check_selector(&selector).ok()?;
    Some(selector)
}

/// Where the policy states DISABLE, which has another effect than it says.
fn disabled(policy: &PeerAuthentication) -> Option<FieldError> {
    let of_port = policy.port_modes.iter().find(|(_, mode)| **mode == Mode::Disable);
    let field = match (policy.mode, of_port) {
        (Some(Mode::Disable), _) => "spec.mtls.mode".to_owned(),
        (_, Some((port, _))) => format!("spec.portLevelMtls.{port}.mode"),
        (_, None) => return None,
    };
    Some(FieldError::new(field, DISABLE_EFFECT))
}

pub(super) fn check_selector(selector: &Labels) -> Result<(), FieldError> {
    for (key, value) in selector {
        let complaint = if key.is_empty() {
            "an empty key"
        } else if key.contains('*') || value.contains('*') {
            "no wildcards are allowed"
        } else if value.len() > 63 {
            "a label value has 63 characters at most"
        } else {
            continue;
        };
        let pair = cut(&format!("{key}: {value}"));
        return Err(FieldError::new("spec.selector.matchLabels", format_args!("{pair:?}: {complaint}")));
    }
    Ok(())
}

fn port_modes(ports: BTreeMap<String, Option<MutualTls>>) -> Result<BTreeMap<u16, Mode>, FieldError> {
    let mut modes = BTreeMap::new();
    for (key, mtls) in ports {
        let field = format!("spec.portLevelMtls.{key}");
        // `parse` alone would take "+80" and "080", and so two spellings of one port.
        let port = key.parse().ok().filter(|port: &u16| *port != 0 && port.to_string() == key);
        let port = port.ok_or_else(|| {
            FieldError::new(&*field, format_args!("{:?} is not a port (1 to 65535)", cut(&key)))
        })?;
        if let Some(mode) = mode(&format!("{field}.mode"), mtls)? {
            modes.insert(port, mode);
        }
    }
    Ok(modes)
}

fn mode(field: &str, mtls: Option<MutualTls>) -> Result<Option<Mode>, FieldError> {
    const ALL: [Option<Mode>; 4] = [None, Some(Mode::Disable), Some(Mode::Permissive), Some(Mode::Strict)];
    let Some(text) = mtls.and_then(|mtls| mtls.mode) else { return Ok(None) };
    if text.is_empty() {
        return Err(FieldError::new(field, "is empty"));
    }
    Ok(ALL[choice(field, Some(text), ["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])?])
}
