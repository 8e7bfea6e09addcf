//! Extension providers, as Istio's mesh configuration has them: those for external authorization.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, uri::PathAndQuery};
use serde::Deserialize;

use super::names::DnsName;
use crate::authz::{BodySettings, Form, HttpSettings, NamePattern, ProviderAddr, ProviderSettings};

/// Istio's default, and the longest.
const TIMEOUT: Duration = Duration::from_secs(600);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
/// The longest part of a body that is held for a provider.
const LARGEST_BODY: usize = 1024 * 1024;
const MOST: usize = 64;

/// Providers of external authorization.
#[derive(Clone, Debug)]
pub(crate) struct ExtensionProviders(pub(crate) Vec<ProviderSettings>);

impl FromStr for ExtensionProviders {
    type Err = String;

    /// A list in YAML, and so in JSON.
    fn from_str(text: &str) -> Result<Self, String> {
        let read: Vec<Entry> = serde_yaml_ng::from_str(text)
            .map_err(|error| format!("extension providers: {}", error.to_string().trim_start_matches('.')))?;
        if read.len() > MOST {
            return Err(format!("{} extension providers are too many: {MOST} at most", read.len()));
        }
        let mut providers: Vec<ProviderSettings> = Vec::new();
        for (place, entry) in read.into_iter().enumerate() {
            let name = if entry.name.is_empty() { format!("[{place}]") } else { format!("{:?}", entry.name) };
            let provider =
                entry.settings().map_err(|error| format!("the extension provider {name}: {error}"))?;
            if providers.iter().any(|other| other.name == provider.name) {
                return Err(format!("two extension providers have the name {name}"));
            }
            providers.push(provider);
        }
        Ok(Self(providers))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: String,
    envoy_ext_authz_http: Option<Http>,
    envoy_ext_authz_grpc: Option<Grpc>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_yaml_ng::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Grpc {
    service: String,
    port: u32,
    timeout: Option<String>,
    #[serde(default)]
    fail_open: bool,
    #[serde(default, deserialize_with = "text_or_number")]
    status_on_error: Option<String>,
    include_request_body_in_check: Option<Body>,
    #[serde(default)]
    clear_route_cache: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Http {
    service: String,
    port: u32,
    timeout: Option<String>,
    #[serde(default)]
    fail_open: bool,
    #[serde(default, deserialize_with = "text_or_number")]
    status_on_error: Option<String>,
    include_request_body_in_check: Option<Body>,
    #[serde(default)]
    clear_route_cache: bool,
    #[serde(default)]
    path_prefix: String,
    #[serde(default)]
    include_request_headers_in_check: Vec<String>,
    #[serde(default)]
    include_additional_headers_in_check: BTreeMap<String, String>,
    /// Deprecated, and told so.
    include_headers_in_check: Option<serde_yaml_ng::Value>,
    #[serde(default)]
    headers_to_upstream_on_allow: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_deny: Vec<String>,
    #[serde(default)]
    headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Body {
    max_request_bytes: usize,
    #[serde(default)]
    allow_partial_message: bool,
    #[serde(default)]
    pack_as_bytes: bool,
}

impl Entry {
    fn settings(self) -> Result<ProviderSettings, String> {
        let Self { name, envoy_ext_authz_http, envoy_ext_authz_grpc, others } = self;
        if let Some(other) = others.keys().next() {
            return Err(format!(
                "{other}: ambit takes envoyExtAuthzHttp and envoyExtAuthzGrpc, and nothing else, here"
            ));
        }
        if name.is_empty() || name.len() > 253 {
            return Err("name: use 1 to 253 characters".to_owned());
        }
        let (common, form, kind) = match (envoy_ext_authz_http, envoy_ext_authz_grpc) {
            (Some(_), Some(_)) => {
                return Err("it has both envoyExtAuthzHttp and envoyExtAuthzGrpc: use one".to_owned());
            }
            (None, None) => {
                return Err("it has neither envoyExtAuthzHttp nor envoyExtAuthzGrpc: use one".to_owned());
            }
            (None, Some(grpc)) => (grpc, Form::Grpc, "envoyExtAuthzGrpc"),
            (Some(http), None) => {
                let (common, form) = http.split().map_err(|error| format!("envoyExtAuthzHttp.{error}"))?;
                (common, Form::Http(Box::new(form)), "envoyExtAuthzHttp")
            }
        };
        common.settings(name, form).map_err(|error| format!("{kind}.{error}"))
    }
}

impl Grpc {
    fn settings(self, name: String, form: Form) -> Result<ProviderSettings, String> {
        if self.clear_route_cache {
            return Err("clearRouteCache: ambit chooses no route anew after a check; leave it out".to_owned());
        }
        let is_http = matches!(form, Form::Http(_));
        Ok(ProviderSettings {
            name: name.into(),
            addr: address(&self.service, self.port)?,
            timeout: self.timeout.as_deref().map_or(Ok(TIMEOUT), timeout)?,
            fail_open: self.fail_open,
            status_on_error: self
                .status_on_error
                .as_deref()
                .map_or(Ok(StatusCode::FORBIDDEN), status_on_error)?,
            body: self.include_request_body_in_check.map(|body| body.settings(is_http)).transpose()?,
            form,
        })
    }
}

impl Http {
    /// What both kinds have, and what this one has alone.
    fn split(self) -> Result<(Grpc, HttpSettings), String> {
        if self.include_headers_in_check.is_some() {
            return Err(
                "includeHeadersInCheck: it is deprecated, use includeRequestHeadersInCheck".to_owned()
            );
        }
        let is_path = self.path_prefix.starts_with('/')
            && !self.path_prefix.contains(['?', '#'])
            && self.path_prefix.parse::<PathAndQuery>().is_ok();
        if !self.path_prefix.is_empty() && !is_path {
            return Err(format!(
                "pathPrefix: {:?} is no path: it begins with / and has no query",
                self.path_prefix
            ));
        }
        let patterns = |field: &str, names: Vec<String>| {
            let read = names.iter().map(|name| NamePattern::new(name));
            read.collect::<Result<Vec<_>, _>>().map_err(|error| format!("{field}: {error}"))
        };
        let form = HttpSettings {
            path_prefix: self.path_prefix.trim_end_matches('/').to_owned(),
            shown: patterns("includeRequestHeadersInCheck", self.include_request_headers_in_check)?,
            added: self
                .include_additional_headers_in_check
                .into_iter()
                .map(additional)
                .collect::<Result<_, _>>()?,
            to_upstream: patterns("headersToUpstreamOnAllow", self.headers_to_upstream_on_allow)?,
            to_client_on_deny: patterns("headersToDownstreamOnDeny", self.headers_to_downstream_on_deny)?,
            to_client_on_allow: patterns("headersToDownstreamOnAllow", self.headers_to_downstream_on_allow)?,
        };
        let common = Grpc {
            service: self.service,
            port: self.port,
            timeout: self.timeout,
            fail_open: self.fail_open,
            status_on_error: self.status_on_error,
            include_request_body_in_check: self.include_request_body_in_check,
            clear_route_cache: self.clear_route_cache,
        };
        Ok((common, form))
    }
}

impl Body {
    fn settings(self, is_http: bool) -> Result<BodySettings, String> {
        let field = "includeRequestBodyInCheck";
        match self.max_request_bytes {
            1..=LARGEST_BODY => {}
            _ => return Err(format!("{field}.maxRequestBytes: use 1 to {LARGEST_BODY}")),
        }
        if is_http && self.pack_as_bytes {
            return Err(format!(
                "{field}.packAsBytes: it is for envoyExtAuthzGrpc; by HTTP a body always goes as it is"
            ));
        }
        Ok(BodySettings {
            max_bytes: self.max_request_bytes,
            allow_partial: self.allow_partial_message,
            as_bytes: self.pack_as_bytes,
        })
    }
}

/// `HOST` or `NAMESPACE/HOST`, and its port.
fn address(service: &str, port: u32) -> Result<ProviderAddr, String> {
    let (namespace, host) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, service),
    };
    let is_host = host.parse::<std::net::IpAddr>().is_ok() || host.parse::<DnsName>().is_ok();
    if !is_host || namespace.is_some_and(|namespace| namespace.parse::<super::Namespace>().is_err()) {
        return Err(format!(
            "service: {service:?} is no host: use NAME.NAMESPACE.svc.<cluster domain>, NAMESPACE/NAME, a DNS name or an IP address"
        ));
    }
    match u16::try_from(port) {
        Ok(port) if port > 0 => {
            Ok(ProviderAddr { namespace: namespace.map(str::to_owned), host: host.to_owned(), port })
        }
        _ => Err(format!("port: {port} is no port: use 1 to 65535")),
    }
}

/// Seconds with a fraction, as protobuf's JSON has durations, or what the other settings take.
fn timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
    let read = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => humantime::parse_duration(text).ok(),
    };
    read.filter(|timeout| (SHORTEST_TIMEOUT..=TIMEOUT).contains(timeout))
        .ok_or_else(|| format!("timeout: {text:?} will not do: use 1ms to 600s, such as 0.5s"))
}

fn status_on_error(text: &str) -> Result<StatusCode, String> {
    let read = text.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok());
    read.filter(|status| status.is_client_error() || status.is_server_error())
        .ok_or_else(|| format!("statusOnError: {text:?} is no status of an error: use \"400\" to \"599\""))
}

fn additional((name, value): (String, String)) -> Result<(HeaderName, HeaderValue), String> {
    let field = "includeAdditionalHeadersInCheck";
    let header: HeaderName = name.parse().map_err(|_| format!("{field}: {name:?} is no header name"))?;
    let mut value: HeaderValue =
        value.parse().map_err(|_| format!("{field}.{name}: its value is not one of a header"))?;
    // It may be what the provider knows its askers by.
    value.set_sensitive(true);
    Ok((header, value))
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u64),
    }
    Ok(Option::<Either>::deserialize(value)?.map(|either| match either {
        Either::Text(text) => text,
        Either::Number(number) => number.to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<ExtensionProviders>().unwrap_err()
    }

    #[test]
    fn what_istios_mesh_configuration_says_is_read() {
        let text = r#"
- name: opa
  envoyExtAuthzGrpc: {service: opa.authz.svc.cluster.local, port: 9191}
- name: oauth2-proxy
  envoyExtAuthzHttp:
    service: authz/oauth2-proxy
    port: 4180
    timeout: 0.5s
    failOpen: true
    statusOnError: "503"
    pathPrefix: /check/
    includeRequestHeadersInCheck: [authorization, "x-*", "*-id"]
    includeAdditionalHeadersInCheck: {X-Asked-By: ambit}
    includeRequestBodyInCheck: {maxRequestBytes: 4096, allowPartialMessage: true}
    headersToUpstreamOnAllow: [x-auth-request-user]
    headersToDownstreamOnDeny: [content-type, set-cookie]
    headersToDownstreamOnAllow: ["*"]
"#;
        let ExtensionProviders(providers) = text.parse().unwrap();
        let [opa, proxy] = &providers[..] else { panic!("{providers:?}") };
        assert_eq!(
            (&*opa.name, opa.addr.to_string()),
            ("opa", "opa.authz.svc.cluster.local:9191".to_owned())
        );
        assert_eq!((opa.timeout, opa.fail_open, opa.status_on_error.as_u16()), (TIMEOUT, false, 403));
        assert_eq!((&opa.form, opa.body), (&Form::Grpc, None));
        assert_eq!(proxy.addr.to_string(), "authz/oauth2-proxy:4180");
        let half = Duration::from_millis(500);
        assert_eq!((proxy.timeout, proxy.fail_open, proxy.status_on_error.as_u16()), (half, true, 503));
        assert_eq!(proxy.body, Some(BodySettings { max_bytes: 4096, allow_partial: true, as_bytes: false }));
        let Form::Http(form) = &proxy.form else { panic!("{:?}", proxy.form) };
        assert_eq!((&*form.path_prefix, form.shown.len(), form.added.len()), ("/check", 3, 1));
        assert_eq!(form.to_client_on_allow, [NamePattern::Suffix(String::new())]);
    }

    #[test]
    fn what_will_not_do_is_named() {
        let grpc = |fields: &str| {
            error(&format!("[{{name: p, envoyExtAuthzGrpc: {{service: a.b, port: 1, {fields}}}}}]"))
        };
        let http = |fields: &str| {
            error(&format!("[{{name: p, envoyExtAuthzHttp: {{service: a.b, port: 1, {fields}}}}}]"))
        };
        let at = |service: &str, port: &str| {
            error(&format!("[{{name: p, envoyExtAuthzGrpc: {{service: {service}, port: {port}}}}}]"))
        };
        let twice = "{name: p, envoyExtAuthzGrpc: {service: a.b, port: 1}}";
        for (found, words) in [
            (grpc("timeout: 0s"), "\"p\": envoyExtAuthzGrpc.timeout: \"0s\" will not do"),
            (grpc("timeout: 11m"), "use 1ms to 600s"),
            (grpc("timeout: soon"), "timeout: \"soon\""),
            (grpc("statusOnError: 200"), "statusOnError: \"200\" is no status of an error"),
            (grpc("clearRouteCache: true"), "clearRouteCache"),
            (grpc("pathPrefix: /x"), "[0].envoyExtAuthzGrpc: unknown field `pathPrefix`"),
            (grpc("includeRequestBodyInCheck: {maxRequestBytes: 0}"), "maxRequestBytes: use 1 to 1048576"),
            (
                http("includeRequestBodyInCheck: {maxRequestBytes: 1, packAsBytes: true}"),
                "packAsBytes: it is for envoyExtAuthzGrpc",
            ),
            (http("pathPrefix: check"), "pathPrefix: \"check\" is no path"),
            (http("includeHeadersInCheck: [a]"), "use includeRequestHeadersInCheck"),
            (
                http("headersToUpstreamOnAllow: ['*a*']"),
                "headersToUpstreamOnAllow: \"*a*\" is no header name",
            ),
            (http("includeAdditionalHeadersInCheck: {'a b': c}"), "\"a b\" is no header name"),
            (at("a.b", "0"), "port: 0 is no port"),
            (at("a.b", "70000"), "port: 70000 is no port"),
            (at("http://a.b", "1"), "service: \"http://a.b\" is no host"),
            (at("A/b", "1"), "service: \"A/b\" is no host"),
            (error("[{name: p}]"), "neither envoyExtAuthzHttp nor envoyExtAuthzGrpc"),
            (error("[{name: p, zipkin: {}}]"), "zipkin: ambit takes envoyExtAuthzHttp and envoyExtAuthzGrpc"),
            (error("[{envoyExtAuthzGrpc: {service: a.b, port: 1}}]"), "name: use 1 to 253"),
            (error(&format!("[{twice}, {twice}]")), "two extension providers have the name \"p\""),
            (error("{name: p}"), "extension providers: invalid type: map"),
        ] {
            assert!(found.contains(words), "{found:?} has no {words:?}");
        }
    }
}
