//! The values of a field, read and compared. Comparing allocates nothing.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    super::{
        http_value::{ClaimPath, PathPattern, RequestPrincipal, claim_matches},
        sieve::Signs,
        value::{InvalidValue, IpBlock, Pattern, ServiceAccount, Wildcard, port},
    },
    Attribute, Context,
};
use crate::{
    model::SpiffeId,
    policy::{Claims, Facts, Request},
};

/// Service accounts in one field, as in Istio's schema.
const MAX_SERVICE_ACCOUNTS: usize = 16;
/// Characters of a service account, as there.
const MAX_SERVICE_ACCOUNT: usize = 320;
/// Characters of what a request has that are told.
const MAX_SEEN: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Principal(Vec<Pattern>),
    Namespace(Vec<Wildcard>),
    ServiceAccount(Vec<ServiceAccount>),
    TrustDomain(Vec<Wildcard>),
    SourceIp(Vec<IpBlock>),
    RemoteIp(Vec<IpBlock>),
    Port(Vec<u16>),
    DestinationIp(Vec<IpBlock>),
    Host(Vec<Pattern>),
    Method(Vec<Pattern>),
    Path(Vec<PathPattern>),
    /// The name is in lower case.
    Header(Box<str>, Vec<Pattern>),
    RequestPrincipal(Vec<RequestPrincipal>),
    Audience(Vec<Pattern>),
    Presenter(Vec<Pattern>),
    Claim(ClaimPath, Vec<Pattern>),
    Sni(Vec<Pattern>),
    Unsupported(Vec<Box<str>>),
}

impl Test {
    pub(super) fn new(
        attribute: Attribute<'_>,
        values: &[String],
        Context { namespace, trust_domains }: Context<'_>,
    ) -> Result<Self, InvalidValue> {
        let patterns = || values.iter().map(|value| Pattern::new(value)).collect();
        Ok(match attribute {
            Attribute::Principal => {
                let meant = values.iter().flat_map(|value| trust_domains.principals(value));
                Self::Principal(meant.map(|principal| Pattern::new(&principal)).collect())
            }
            Attribute::Namespace => {
                Self::Namespace(values.iter().map(|value| Wildcard::new(value)).collect())
            }
            Attribute::ServiceAccount => Self::ServiceAccount(service_accounts(values, namespace)?),
            Attribute::TrustDomain => {
                each(values, "is not a trust domain: it has a '/'", |value| {
                    (!value.contains('/')).then_some(())
                })?;
                let meant = values.iter().flat_map(|value| trust_domains.domains(value));
                Self::TrustDomain(meant.map(|domain| Wildcard::new(&domain)).collect())
            }
            Attribute::SourceIp => Self::SourceIp(blocks(values)?),
            Attribute::RemoteIp => Self::RemoteIp(blocks(values)?),
            Attribute::DestinationIp => Self::DestinationIp(blocks(values)?),
            Attribute::Port => Self::Port(each(values, "is not a port (0 to 65535)", |value| port(value))?),
            Attribute::Host => Self::Host(patterns()),
            Attribute::Method => Self::Method(patterns()),
            Attribute::Path => Self::Path(each(
                values,
                "is no path: braces stand in {*} and {**} only, for whole segments, and none follows {**}",
                |value| PathPattern::new(value),
            )?),
            Attribute::Header(name) => Self::Header(name.to_ascii_lowercase().into(), patterns()),
            Attribute::RequestPrincipal => {
                Self::RequestPrincipal(values.iter().map(|value| RequestPrincipal::new(value)).collect())
            }
            Attribute::Audience => Self::Audience(patterns()),
            Attribute::Presenter => Self::Presenter(patterns()),
            Attribute::Claim(path) => Self::Claim(ClaimPath::new(path), patterns()),
            Attribute::Sni => Self::Sni(patterns()),
            Attribute::Unsupported => {
                Self::Unsupported(values.iter().map(|value| value.as_str().into()).collect())
            }
        })
    }

    pub(super) fn attribute(&self) -> Attribute<'_> {
        match self {
            Self::Principal(_) => Attribute::Principal,
            Self::Namespace(_) => Attribute::Namespace,
            Self::ServiceAccount(_) => Attribute::ServiceAccount,
            Self::TrustDomain(_) => Attribute::TrustDomain,
            Self::SourceIp(_) => Attribute::SourceIp,
            Self::RemoteIp(_) => Attribute::RemoteIp,
            Self::Port(_) => Attribute::Port,
            Self::DestinationIp(_) => Attribute::DestinationIp,
            Self::Host(_) => Attribute::Host,
            Self::Method(_) => Attribute::Method,
            Self::Path(_) => Attribute::Path,
            Self::Header(name, _) => Attribute::Header(name),
            Self::RequestPrincipal(_) => Attribute::RequestPrincipal,
            Self::Audience(_) => Attribute::Audience,
            Self::Presenter(_) => Attribute::Presenter,
            Self::Claim(path, _) => Attribute::Claim(path.written()),
            Self::Sni(_) => Attribute::Sni,
            Self::Unsupported(_) => Attribute::Unsupported,
        }
    }

    pub(super) fn values(&self) -> Vec<String> {
        fn texts<T: ToString>(values: &[T]) -> Vec<String> {
            values.iter().map(ToString::to_string).collect()
        }
        match self {
            Self::Namespace(values) | Self::TrustDomain(values) => texts(values),
            Self::ServiceAccount(values) => texts(values),
            Self::SourceIp(values) | Self::RemoteIp(values) | Self::DestinationIp(values) => texts(values),
            Self::Port(values) => texts(values),
            Self::Path(values) => texts(values),
            Self::RequestPrincipal(values) => texts(values),
            Self::Principal(values)
            | Self::Host(values)
            | Self::Method(values)
            | Self::Header(_, values)
            | Self::Audience(values)
            | Self::Presenter(values)
            | Self::Claim(_, values)
            | Self::Sni(values) => texts(values),
            Self::Unsupported(values) => texts(values),
        }
    }

    /// Whether the attribute has one of the values; none if that is not known.
    pub(super) fn has_one(&self, facts: &Facts<'_>, final_word: bool) -> Option<bool> {
        let of_peer = |has: &dyn Fn(&SpiffeId) -> bool| Some(facts.peer.is_some_and(has));
        let of_token = |has: &dyn Fn(&Claims) -> bool| Some(facts.request?.token.is_some_and(has));
        let text = |patterns: &[Pattern], text: &str| {
            patterns.iter().any(|pattern| pattern.matches_text(text.as_bytes()))
        };
        Some(match self {
            Self::Principal(values) => {
                return of_peer(&|peer| values.iter().any(|value| value.matches(peer)));
            }
            Self::Namespace(values) => {
                return of_peer(&|peer| values.iter().any(|value| value.matches(peer.namespace())));
            }
            Self::ServiceAccount(values) => {
                return of_peer(&|peer| values.iter().any(|value| value.matches(peer)));
            }
            Self::TrustDomain(values) => {
                return of_peer(&|peer| {
                    values.iter().any(|value| value.matches(peer.trust_domain().as_str()))
                });
            }
            Self::SourceIp(blocks) => within(blocks, facts.source_ip),
            Self::RemoteIp(blocks) => match facts.request {
                Some(request) => within(blocks, request.remote_ip),
                None if final_word => within(blocks, facts.source_ip),
                None => return None,
            },
            Self::DestinationIp(blocks) => within(blocks, facts.destination_ip),
            Self::Port(ports) => ports.contains(&facts.port),
            Self::Host(hosts) => {
                let authority = facts.request?.authority.as_bytes();
                hosts.iter().any(|host| host.matches_ignoring_case(authority))
            }
            Self::Method(methods) => text(methods, facts.request?.method),
            Self::Path(paths) => {
                let path = facts.request?.path;
                paths.iter().any(|pattern| pattern.matches(path))
            }
            Self::Header(name, values) => header_matches(facts.request?, name, values),
            Self::RequestPrincipal(values) => {
                return of_token(&|token| values.iter().any(|value| value.matches(token)));
            }
            Self::Audience(values) => return of_token(&|token| claim_matches(token.get("aud"), values)),
            Self::Presenter(values) => return of_token(&|token| claim_matches(token.get("azp"), values)),
            Self::Claim(path, values) => return of_token(&|token| claim_matches(path.find(token), values)),
            Self::Sni(names) => text(names, facts.sni.or(facts.request.is_some().then_some(""))?),
            Self::Unsupported(_) => return None,
        })
    }

    /// Whether the values of `other` are among these, or the other way round. Never said of what is not known.
    pub(super) fn has_values_of(&self, other: &Self, reversed: bool) -> bool {
        fn within<T: PartialEq>(few: &[T], many: &[T]) -> bool {
            few.iter().all(|value| many.contains(value))
        }
        fn fits<T: PartialEq>(own: &[T], other: &[T], reversed: bool) -> bool {
            if reversed { within(own, other) } else { within(other, own) }
        }
        match (self, other) {
            (Self::Principal(own), Self::Principal(other))
            | (Self::Host(own), Self::Host(other))
            | (Self::Method(own), Self::Method(other))
            | (Self::Audience(own), Self::Audience(other))
            | (Self::Presenter(own), Self::Presenter(other))
            | (Self::Sni(own), Self::Sni(other)) => fits(own, other, reversed),
            (Self::Header(name, own), Self::Header(same, other)) => {
                name == same && fits(own, other, reversed)
            }
            (Self::Claim(path, own), Self::Claim(same, other)) => path == same && fits(own, other, reversed),
            (Self::Namespace(own), Self::Namespace(other))
            | (Self::TrustDomain(own), Self::TrustDomain(other)) => fits(own, other, reversed),
            (Self::ServiceAccount(own), Self::ServiceAccount(other)) => fits(own, other, reversed),
            (Self::SourceIp(own), Self::SourceIp(other))
            | (Self::RemoteIp(own), Self::RemoteIp(other))
            | (Self::DestinationIp(own), Self::DestinationIp(other)) => fits(own, other, reversed),
            (Self::Port(own), Self::Port(other)) => fits(own, other, reversed),
            (Self::Path(own), Self::Path(other)) => fits(own, other, reversed),
            (Self::RequestPrincipal(own), Self::RequestPrincipal(other)) => fits(own, other, reversed),
            _ => false,
        }
    }

    /// What every connection has that has one of the values.
    pub(super) fn signs(&self) -> Signs {
        match self {
            Self::Principal(values) => Signs::of_accounts(values.iter().map(|value| account(value.exact()?))),
            Self::ServiceAccount(values) => {
                Signs::of_accounts(values.iter().map(|value| Some(value.parts())))
            }
            Self::Namespace(values) => Signs::of_namespaces(values.iter().map(Wildcard::exact)),
            Self::SourceIp(blocks) => Signs::of_addresses(blocks.iter().map(IpBlock::first_byte)),
            Self::Port(ports) => Signs::of_ports(ports),
            _ => Signs::ANY,
        }
    }

    /// What the connection has of the attribute, in words.
    pub(super) fn seen(&self, facts: &Facts<'_>) -> String {
        let of_peer = |part: &dyn Fn(&SpiffeId) -> String| {
            facts.peer.map_or_else(|| "no identity, as it is plaintext".to_owned(), part)
        };
        let of_request = |part: &dyn Fn(&Request<'_>) -> String| {
            facts.request.map_or_else(|| "what only HTTP would tell".to_owned(), part)
        };
        let of_token = |part: &dyn Fn(&Claims) -> String| {
            of_request(&|request| request.token.map_or_else(|| "no token".to_owned(), part))
        };
        match self {
            Self::Principal(_) => of_peer(&|id| id.to_string().trim_start_matches("spiffe://").to_owned()),
            Self::Namespace(_) => of_peer(&|id| id.namespace().to_owned()),
            Self::ServiceAccount(_) => of_peer(&|id| format!("{}/{}", id.namespace(), id.service_account())),
            Self::TrustDomain(_) => of_peer(&|id| id.trust_domain().to_string()),
            Self::SourceIp(_) => facts.source_ip.to_string(),
            Self::RemoteIp(_) => {
                facts.request.map_or(facts.source_ip, |request| request.remote_ip).to_string()
            }
            Self::Port(_) => facts.port.to_string(),
            Self::DestinationIp(_) => facts.destination_ip.to_string(),
            Self::Host(_) => of_request(&|request| cut(request.authority)),
            Self::Method(_) => of_request(&|request| cut(request.method)),
            Self::Path(_) => of_request(&|request| cut(request.path)),
            Self::Header(name, _) => of_request(&|request| match request.headers.joined(name) {
                Some(value) => cut(&String::from_utf8_lossy(&value)),
                None => format!("no header {name}"),
            }),
            Self::RequestPrincipal(_) => of_token(&|token| {
                let claim = |name| token.get(name).and_then(Value::as_str).unwrap_or_default();
                cut(&format!("{}/{}", claim("iss"), claim("sub")))
            }),
            Self::Audience(_) => of_token(&|token| claim_seen(token.get("aud"))),
            Self::Presenter(_) => of_token(&|token| claim_seen(token.get("azp"))),
            Self::Claim(path, _) => of_token(&|token| claim_seen(path.find(token))),
            Self::Sni(_) => match facts.sni {
                Some("") => "no name".to_owned(),
                Some(name) => cut(name),
                None => "what only TLS would tell".to_owned(),
            },
            Self::Unsupported(_) => "what is not known here".to_owned(),
        }
    }
}

/// Of a header that is there but empty, `*` is no more than that.
fn header_matches(request: &Request<'_>, name: &str, values: &[Pattern]) -> bool {
    let Some(value) = request.headers.joined(name) else { return false };
    values.iter().any(|pattern| *pattern == Pattern::Present || pattern.matches_text(&value))
}

fn within(blocks: &[IpBlock], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    blocks.iter().any(|block| block.contains(ip))
}

/// Namespace and service account of a principal.
fn account(principal: &str) -> Option<(&str, &str)> {
    let mut parts = principal.split('/').skip(1);
    let mut next = || parts.next();
    match [next(), next(), next(), next(), next()] {
        [Some("ns"), Some(namespace), Some("sa"), Some(name), None] => Some((namespace, name)),
        // It matches nobody; as if it may match anybody is good enough.
        _ => None,
    }
}

fn claim_seen(claim: Option<&Value>) -> String {
    claim.map_or_else(|| "no such claim".to_owned(), |claim| cut(&claim.to_string()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_SEEN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn service_accounts(values: &[String], namespace: &str) -> Result<Vec<ServiceAccount>, InvalidValue> {
    if values.len() > MAX_SERVICE_ACCOUNTS {
        return Err(InvalidValue { at: None, problem: "has more than 16 service accounts" });
    }
    let fits = |value: &&String| value.chars().count() <= MAX_SERVICE_ACCOUNT;
    let problem = "is not NAME or NAMESPACE/NAME, without wildcards and at most 320 characters long";
    each(values, problem, |value| {
        Some(value).filter(fits).and_then(|value| ServiceAccount::new(value, namespace))
    })
}

fn blocks(values: &[String]) -> Result<Vec<IpBlock>, InvalidValue> {
    each(values, "is not an IP address or a block of them (CIDR)", |value| IpBlock::new(value))
}

fn each<T>(
    values: &[String],
    problem: &'static str,
    read: impl Fn(&String) -> Option<T>,
) -> Result<Vec<T>, InvalidValue> {
    let one = |(at, value)| read(value).ok_or(InvalidValue { at: Some(at), problem });
    values.iter().enumerate().map(one).collect()
}
