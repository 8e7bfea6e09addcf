//! DestinationRules, held to what Istio's own validation demands (`ValidateDestinationRule` in `pkg/config/validation` of
//! istio/istio). What needs routing is taken and told to have no effect.
//!
//! Promises that a rule which cannot be read closes the way to its host: it may want TLS there.

mod tls;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ambit_core::{
    discovery::{
        Change as MeshChange, ClientSettings, ClientTls, ConnectionPool, DestinationRule, ExportTo,
        HostPattern, Keepalive, Settings, TrafficPolicy,
    },
    model::{Labels, ObjectName},
};
use serde_json::Value;

use super::{
    Change, FieldError, Valid,
    fields::{cut, known, labels, port_number, present, timestamp},
    peer_authentication::check_selector,
    request_authentication::milliseconds,
    wire::{self, Metadata, Pairs},
};

wire::objects! {
    Object {
        metadata: Option<Metadata>,
        spec: Option<Spec>,
    }

    Spec {
        host: Option<String>,
        traffic_policy: Option<Value>,
        subsets: Option<Vec<Value>>,
        export_to: Option<Vec<String>>,
        workload_selector: Option<Selector>,
    }

    Selector {
        match_labels: Option<Pairs>,
    }

    Policy {
        connection_pool: Option<Pool>,
        tls: Option<tls::Tls>,
        load_balancer: Option<Value>,
        outlier_detection: Option<Value>,
        tunnel: Option<Value>,
        proxy_protocol: Option<Value>,
        retry_budget: Option<Value>,
    }

    Pool {
        tcp: Option<Tcp>,
        http: Option<Value>,
    }

    Tcp {
        max_connections: Option<i64>,
        connect_timeout: Option<String>,
        tcp_keepalive: Option<TcpKeepalive>,
        max_connection_duration: Option<String>,
        idle_timeout: Option<String>,
    }

    TcpKeepalive {
        probes: Option<i64>,
        time: Option<String>,
        interval: Option<String>,
    }
}

const SPEC_FIELDS: [&str; 5] = ["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"];
const POLICY_FIELDS: [&str; 8] = [
    "tls",
    "connectionPool",
    "portLevelSettings",
    "loadBalancer",
    "outlierDetection",
    "tunnel",
    "proxyProtocol",
    "retryBudget",
];
const TCP_FIELDS: [&str; 5] =
    ["maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];

pub(super) fn read(name: ObjectName, object: &Value, settings: &Settings) -> Result<Valid, FieldError> {
    known(object.get("spec"), "spec", &SPEC_FIELDS)?;
    known(object.pointer("/spec/workloadSelector"), "spec.workloadSelector", &["matchLabels"])?;
    let Object { metadata, spec } = wire::typed(object)?;
    let spec = spec.unwrap_or_default();
    let host = host(spec.host, &name, settings)?;
    let selector = spec.workload_selector.map(|selector| labels(selector.match_labels));
    let selector = selector.filter(|labels| !labels.is_empty());
    if let Some(selector) = &selector {
        check_selector(selector)?;
    }
    let mut told = Told::default();
    let of = Of { rule: &name, selects: selector.is_some() };
    let policy =
        spec.traffic_policy.as_ref().map(|policy| traffic_policy(policy, &of, &mut told)).transpose()?;
    if spec.subsets.is_some_and(|subsets| !subsets.is_empty()) {
        told.ignored.push("spec.subsets: no route leads to a subset here".to_owned());
    }
    let rule = DestinationRule {
        created: timestamp(metadata.unwrap_or_default().creation_timestamp)?,
        host,
        exported_to: exported_to(spec.export_to, &name),
        selector,
        policy,
        name,
    };
    let unsupported = (!told.ignored.is_empty()).then(|| told.ignored.join("; "));
    let all: Vec<String> = told.loud.into_iter().chain(unsupported.clone()).collect();
    let notice = (!all.is_empty()).then(|| FieldError::new("", all.join("; ")));
    let change = Change::Mesh(MeshChange::DestinationRule(Arc::new(rule)));
    Ok(Valid { change, notice, unsupported, idle: false })
}

/// The strictest that a rule may say which cannot be read: no connection to its host, as far as that can be told; else none of its
/// own namespace's to any host that rules are for.
pub(super) fn unreadable(
    name: ObjectName,
    object: &Value,
    error: &FieldError,
    settings: &Settings,
) -> Change {
    let spec = object.get("spec").filter(|_| error.field.as_deref() != Some("apiVersion"));
    let part = |field: &str| spec.and_then(|spec| spec.get(field));
    let host = host(part("host").and_then(Value::as_str).map(str::to_owned), &name, settings).ok();
    let exports = part("exportTo").and_then(|list| wire::typed::<Vec<String>>(list).ok());
    let selector = part("workloadSelector").and_then(|selector| wire::typed::<Selector>(selector).ok());
    let selector = selector.map(|selector| labels(selector.match_labels)).filter(|labels| !labels.is_empty());
    let stamp = object.pointer("/metadata/creationTimestamp").and_then(Value::as_str);
    let created = stamp.and_then(|text| timestamp(Some(text.to_owned())).ok().flatten());
    let why = format!("DestinationRule {name} cannot be read ({error}), and may demand TLS");
    let settings = ClientSettings {
        rule: name.clone(),
        tls: ClientTls::Unusable(why.into()),
        pool: ConnectionPool::default(),
    };
    let policy = TrafficPolicy { default: Arc::new(settings), ports: BTreeMap::new() };
    Change::Mesh(MeshChange::DestinationRule(Arc::new(DestinationRule {
        // One whose age is not known goes before others for the same host.
        created: created.or(Some(i64::MIN)),
        exported_to: match &host {
            Some(_) => exported_to(exports, &name),
            None => ExportTo::Only(vec![Arc::clone(&name.namespace)]),
        },
        host: host.unwrap_or_else(|| HostPattern::new("*")),
        selector,
        policy: Some(policy),
        name,
    })))
}

/// The hosts that a text speaks for: a name without a dot is that of a service of the object's own namespace.
fn host(text: Option<String>, name: &ObjectName, settings: &Settings) -> Result<HostPattern, FieldError> {
    let text = present(text).ok_or_else(|| FieldError::new("spec.host", "is missing"))?;
    let bare = text.strip_prefix("*.").unwrap_or(&text);
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if text != "*" && (bare.is_empty() || !bare.chars().all(legal)) {
        return Err(FieldError::new("spec.host", format_args!("{:?} is no host", cut(&text))));
    }
    if text.contains(['.', '*', ':']) {
        return Ok(HostPattern::new(&text));
    }
    Ok(HostPattern::new(&format!("{text}.{}.svc.{}", name.namespace, settings.cluster_domain)))
}

/// Whose clients see an object.
pub(super) fn exported_to(list: Option<Vec<String>>, name: &ObjectName) -> ExportTo {
    let list = list.unwrap_or_default();
    if list.is_empty() || list.iter().any(|to| to == "*") {
        return ExportTo::All;
    }
    let named = list.iter().filter(|to| **to != "~").map(|to| match &**to {
        "." => Arc::clone(&name.namespace),
        other => other.into(),
    });
    ExportTo::Only(named.collect())
}

/// The rule that a policy stands in.
struct Of<'a> {
    rule: &'a ObjectName,
    /// It is for selected clients of its own namespace.
    selects: bool,
}

/// What has to be said of a rule that can be read.
#[derive(Default)]
struct Told {
    /// It weakens what TLS is for.
    loud: Vec<String>,
    /// It has no effect.
    ignored: Vec<String>,
}

fn traffic_policy(policy: &Value, of: &Of<'_>, told: &mut Told) -> Result<TrafficPolicy, FieldError> {
    const PATH: &str = "spec.trafficPolicy";
    let default = Arc::new(client_settings(policy, PATH, of, told)?);
    let mut ports = BTreeMap::new();
    let levels = match policy.get("portLevelSettings") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(levels)) => levels,
        Some(_) => return Err(FieldError::new(format!("{PATH}.portLevelSettings"), "is not a list")),
    };
    for (at, level) in levels.iter().enumerate() {
        let path = format!("{PATH}.portLevelSettings[{at}]");
        let number = level.pointer("/port/number").and_then(Value::as_i64);
        let field = format!("{path}.port.number");
        let number = number.ok_or_else(|| FieldError::new(&*field, "is missing"))?;
        let mut own = level.clone();
        if let Some(fields) = own.as_object_mut() {
            fields.remove("port");
        }
        let settings = client_settings(&own, &path, of, told)?;
        // As for any list, the first of two for one port counts.
        ports.entry(port_number(&field, number)?).or_insert_with(|| Arc::new(settings));
    }
    Ok(TrafficPolicy { default, ports })
}

fn client_settings(
    policy: &Value,
    path: &str,
    of: &Of<'_>,
    told: &mut Told,
) -> Result<ClientSettings, FieldError> {
    known(Some(policy), path, &POLICY_FIELDS)?;
    known(policy.get("tls"), &format!("{path}.tls"), &tls::FIELDS)?;
    known(policy.pointer("/connectionPool/tcp"), &format!("{path}.connectionPool.tcp"), &TCP_FIELDS)?;
    let read: Policy = wire::typed(policy).map_err(|error| {
        let field = error.field.map_or_else(|| path.to_owned(), |field| format!("{path}.{field}"));
        FieldError::new(field, error.message)
    })?;
    let http = read.connection_pool.as_ref().is_some_and(|pool| pool.http.is_some());
    for (there, field, why) in [
        (
            read.load_balancer.is_some(),
            "loadBalancer",
            "endpoints are chosen at random, or by the service's affinity",
        ),
        (read.outlier_detection.is_some(), "outlierDetection", "endpoints are not watched for errors"),
        (http, "connectionPool.http", "requests are not counted"),
        (read.tunnel.is_some(), "tunnel", "connections go straight to the destination"),
        (read.proxy_protocol.is_some(), "proxyProtocol", "no PROXY header is sent"),
        (read.retry_budget.is_some(), "retryBudget", "requests are not retried"),
    ] {
        if there {
            told.ignored.push(format!("{path}.{field} has no effect: {why}"));
        }
    }
    let tls = match read.tls {
        None => ClientTls::Unset,
        Some(tls) => tls.read(&format!("{path}.tls"), of, told)?,
    };
    let tcp = read.connection_pool.and_then(|pool| pool.tcp);
    let pool = tcp.map(|tcp| connection_pool(tcp, &format!("{path}.connectionPool.tcp"))).transpose()?;
    Ok(ClientSettings { rule: of.rule.clone(), tls, pool: pool.unwrap_or_default() })
}

fn connection_pool(tcp: Tcp, path: &str) -> Result<ConnectionPool, FieldError> {
    let within = |field: &str| format!("{path}.{field}");
    let keepalive = tcp.tcp_keepalive.map(|keepalive| {
        Ok(Keepalive {
            probes: count(keepalive.probes, &within("tcpKeepalive.probes"))?,
            time: duration(keepalive.time, &within("tcpKeepalive.time"))?,
            interval: duration(keepalive.interval, &within("tcpKeepalive.interval"))?,
        })
    });
    Ok(ConnectionPool {
        max_connections: count(tcp.max_connections, &within("maxConnections"))?,
        connect_timeout: duration(tcp.connect_timeout, &within("connectTimeout"))?,
        keepalive: keepalive.transpose()?,
        idle_timeout: duration(tcp.idle_timeout, &within("idleTimeout"))?,
        max_duration: duration(tcp.max_connection_duration, &within("maxConnectionDuration"))?,
    })
}

/// Zero is what is written where nothing is meant.
fn count(number: Option<i64>, path: &str) -> Result<Option<u32>, FieldError> {
    match number {
        None | Some(0) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(count) => Ok(Some(count)),
            Err(_) => Err(FieldError::new(path, format_args!("{number} is not a number of 1 or more"))),
        },
    }
}

fn duration(text: Option<String>, path: &str) -> Result<Option<Duration>, FieldError> {
    let Some(text) = present(text) else { return Ok(None) };
    match milliseconds(&text) {
        Some(0.0) => Ok(None),
        // A century is beyond what a timer can hold.
        Some(ms) if (1.0..3.0e12).contains(&ms) => Ok(Some(Duration::from_millis(ms as u64))),
        _ => Err(FieldError::new(
            path,
            format_args!("{:?} is not a duration of at least 1ms, such as 5s", cut(&text)),
        )),
    }
}

/// Labels that nothing was said of select everybody.
pub(super) fn entry_selector(object: Option<&Value>, path: &str) -> Result<Option<Labels>, FieldError> {
    known(object, path, &["labels"])?;
    match object {
        None | Some(Value::Null) => Ok(None),
        Some(selector) => {
            let pairs = selector.get("labels").cloned().unwrap_or_default();
            let pairs: Option<Pairs> = wire::typed(&pairs)
                .map_err(|error| FieldError::new(format!("{path}.labels"), error.message))?;
            Ok(Some(labels(pairs)))
        }
    }
}
