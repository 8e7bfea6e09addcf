//! Why a connection was refused or cut: one code and one shape of a "no" for logs, metrics, `ambit status` and the
//! tunnel's DENY frame.
//!
//! A [`Refusal`] is made where it is decided and passed on as it is; nobody derives a reason a second time.

use std::{fmt, sync::Arc};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $label:literal;)*) => {
        /// A stable reason. Numbers and labels never change their meaning; new ones are added at the end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name = $code,)*
        }

        impl Reason {
            /// Every reason, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number that the DENY and RESET frames carry.
            pub fn code(self) -> u16 {
                self as u16
            }

            /// The label of metrics and logs: lower case, words joined by `_`.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }

            /// The reason for a number from a peer; a number that this version does not know is [`Reason::Unknown`].
            pub fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$name,)*
                    _ => Self::Unknown,
                }
            }
        }
    };
}

reasons! {
    /// A peer gave a code that this version does not know.
    Unknown = 0, "unknown";
    /// PeerAuthentication demands mutual TLS and the client spoke plaintext.
    MtlsRequired = 1, "mtls_required";
    /// An authorization policy refused the connection.
    PolicyDenied = 2, "policy_denied";
    /// The peer presented no certificate.
    CertificateMissing = 10, "certificate_missing";
    /// The peer's certificate is past its not-after.
    CertificateExpired = 11, "certificate_expired";
    /// The peer's certificate is before its not-before: one of the clocks is off.
    CertificateNotYetValid = 12, "certificate_not_yet_valid";
    /// The peer's certificate leads to no trusted root.
    CertificateUntrusted = 13, "certificate_untrusted";
    /// The peer's certificate has not exactly one URI SAN with a workload identity in it.
    CertificateIdentity = 14, "certificate_identity";
    /// The peer's certificate is valid, but for another workload than the one expected at that address.
    IdentityMismatch = 15, "identity_mismatch";
    /// The peer's certificate cannot be used otherwise (bad signature, wrong key usage, unreadable).
    CertificateInvalid = 16, "certificate_invalid";
    /// The peer's trust domain is not one of ours.
    TrustDomain = 17, "trust_domain";
    /// The root under which the peer's certificate was believed is trusted no more.
    RootWithdrawn = 18, "root_withdrawn";
    /// The peer's certificate, or one above it, is on a certificate revocation list.
    CertificateRevoked = 19, "certificate_revoked";
    /// No certificate of our own for the workload, or it has expired.
    IdentityUnavailable = 20, "identity_unavailable";
    /// The TLS handshake failed for another reason.
    TlsHandshake = 21, "tls_handshake";
    /// The peer broke the tunnel protocol.
    ProtocolError = 22, "protocol_error";
    /// The peer took too long.
    Timeout = 23, "timeout";
    /// The destination is known, but has no such port.
    UnknownPort = 30, "unknown_port";
    /// The service has no endpoint.
    NoEndpoint = 31, "no_endpoint";
    /// The destination could not be connected to.
    Unreachable = 32, "unreachable";
    /// The application refused the connection: nothing listens on that port.
    ConnectionRefused = 33, "connection_refused";
    /// The load balancer's address is for other clients, by its service.
    SourceRange = 34, "source_range";
    /// A bound of the agent is reached.
    Overloaded = 40, "overloaded";
    /// The agent has not yet seen its first complete state.
    NotReady = 41, "not_ready";
    /// The pod is no longer in the mesh, or the agent is stopping.
    Draining = 42, "draining";
    /// The original destination of a captured connection is not known.
    OriginalDstUnknown = 43, "original_dst_unknown";
    /// The application or its peer reset the connection.
    Reset = 50, "reset";
    /// What the client sent is no HTTP request, or two programs could read it differently.
    MalformedRequest = 60, "malformed_request";
    /// The request's token is not good.
    TokenRefused = 61, "token_refused";
    /// The external provider that a CUSTOM policy names refused, or could not be asked.
    ProviderRefused = 62, "provider_refused";
    /// The destination is outside, no ServiceEntry has it, and the namespace may reach nothing else.
    EgressDenied = 70, "egress_denied";
    /// A DestinationRule for the destination cannot be honoured as it stands.
    RuleUnusable = 71, "rule_unusable";
    /// A DestinationRule demands the mesh's mutual TLS, and the endpoint is not in the mesh.
    MtlsUnavailable = 72, "mtls_unavailable";
    /// A certificate, key or list that a DestinationRule names cannot be had or used.
    CredentialsUnavailable = 73, "credentials_unavailable";
    /// The client has as many connections to the destination as a DestinationRule allows.
    ConnectionLimit = 74, "connection_limit";
    /// The name of the destination leads to no address.
    NameUnresolved = 75, "name_unresolved";
}

impl Reason {
    /// Whether an agent decided against the connection, for reasons of policy, identity or its own bounds. The others tell of
    /// the network, the application or the service.
    pub fn is_denial(self) -> bool {
        match self {
            Self::UnknownPort
            | Self::NoEndpoint
            | Self::Unreachable
            | Self::ConnectionRefused
            | Self::Timeout
            | Self::TlsHandshake
            | Self::ProtocolError
            | Self::Draining
            | Self::OriginalDstUnknown
            | Self::NameUnresolved
            | Self::Reset => false,
            Self::Unknown
            | Self::MtlsRequired
            | Self::PolicyDenied
            | Self::CertificateMissing
            | Self::CertificateExpired
            | Self::CertificateNotYetValid
            | Self::CertificateUntrusted
            | Self::CertificateIdentity
            | Self::IdentityMismatch
            | Self::CertificateInvalid
            | Self::TrustDomain
            | Self::RootWithdrawn
            | Self::CertificateRevoked
            | Self::IdentityUnavailable
            | Self::Overloaded
            | Self::EgressDenied
            | Self::SourceRange
            | Self::RuleUnusable
            | Self::MtlsUnavailable
            | Self::CredentialsUnavailable
            | Self::ConnectionLimit
            | Self::NotReady
            | Self::MalformedRequest
            | Self::TokenRefused
            | Self::ProviderRefused => true,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A "no" to one connection. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub reason: Reason,
    /// `namespace/name` of the policy that decided, if one did.
    pub policy: Option<Arc<str>>,
    /// The rule in that policy, as a path such as `rules[2]`, if one decided.
    pub rule: Option<Arc<str>>,
    /// The field of that rule that did not hold, as a path such as `from[0].source.namespaces`, where no ALLOW policy matched
    /// and this rule came nearest.
    pub field: Option<Arc<str>>,
    /// One sentence for an operator. A peer's text may hold any printable characters.
    pub text: Arc<str>,
}

impl Refusal {
    /// A refusal that no policy decided.
    pub fn new(reason: Reason, text: impl Into<Arc<str>>) -> Self {
        Self { reason, policy: None, rule: None, field: None, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a policy that is not in force would have made of a connection. A rule is told by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rehearsed {
    /// The verdict would be the same; an AUDIT policy does not match.
    Unchanged,
    /// The connection is let in, and would be refused.
    WouldRefuse,
    /// The connection is refused, and this rule would let it in.
    WouldAdmit(usize),
    /// This rule of an AUDIT policy matches.
    Audited(usize),
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn codes_come_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), *reason);
        }
        assert_eq!(Reason::from_code(65_535), Reason::Unknown);
    }
}
