//! One coded reason for whatever ends a handshake, on our side or by the peer's alert.

use ambit_core::reason::Reason;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::verify::Refusal;

/// The reason for a handshake's failure, and one sentence for an operator. An alert from the peer is mapped as far as
/// TLS lets it tell: then the reason is the one for which the peer refuses *our* certificate, and the text says so.
pub(crate) fn handshake_reason(error: &Error) -> (Reason, String) {
    match error {
        Error::NoCertificatesPresented => {
            let Refusal { reason, text } = Refusal::missing();
            (reason, text)
        }
        Error::InvalidCertificate(error) => certificate_reason(error),
        Error::AlertReceived(alert) => alert_reason(*alert),
        Error::NoApplicationProtocol => {
            (Reason::TlsHandshake, "the peer does not speak ambit/1 (no common ALPN protocol)".into())
        }
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => (
            Reason::TlsHandshake,
            "no key exchange in common with the peer; see the post-quantum setting".into(),
        ),
        Error::FailedToGetCurrentTime => {
            (Reason::TlsHandshake, "this node's clock is before 1970; set it".into())
        }
        error => (Reason::TlsHandshake, format!("TLS handshake failed: {error}")),
    }
}

/// The reason for an alert from the peer, and one sentence for an operator.
pub(crate) fn alert_reason(alert: AlertDescription) -> (Reason, String) {
    let (reason, text) = match alert {
        AlertDescription::CertificateRequired => {
            (Reason::CertificateMissing, "the peer demands a certificate of ours and got none")
        }
        AlertDescription::CertificateExpired => (
            Reason::CertificateExpired,
            "the peer refuses our certificate: expired or not yet valid by its clock",
        ),
        AlertDescription::UnknownCA => {
            (Reason::CertificateUntrusted, "the peer refuses our certificate: it does not trust the issuer")
        }
        AlertDescription::AccessDenied => {
            (Reason::IdentityMismatch, "the peer refuses our identity (access_denied)")
        }
        AlertDescription::CertificateUnknown => (
            Reason::CertificateInvalid,
            "the peer refuses our certificate (certificate_unknown); its own log has the reason, such as identity or trust domain",
        ),
        AlertDescription::CertificateRevoked => {
            (Reason::CertificateRevoked, "the peer refuses our certificate: it was revoked")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::NoCertificate => {
            return (Reason::CertificateInvalid, format!("the peer refuses our certificate ({alert:?})"));
        }
        AlertDescription::NoApplicationProtocol => {
            (Reason::TlsHandshake, "the peer does not speak ambit/1 (no common ALPN protocol)")
        }
        AlertDescription::ProtocolVersion => (Reason::TlsHandshake, "the peer does not speak TLS 1.3"),
        alert => {
            return (Reason::TlsHandshake, format!("the peer ended the handshake with the alert {alert:?}"));
        }
    };
    (reason, text.into())
}

fn certificate_reason(error: &CertificateError) -> (Reason, String) {
    let reason = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::CertificateExpired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            Reason::CertificateNotYetValid
        }
        CertificateError::Revoked => Reason::CertificateRevoked,
        CertificateError::UnknownIssuer => Reason::CertificateUntrusted,
        CertificateError::Other(other) => match other.0.downcast_ref::<Refusal>() {
            Some(refusal) => return (refusal.reason, refusal.text.clone()),
            None => Reason::CertificateInvalid,
        },
        _ => Reason::CertificateInvalid,
    };
    (reason, format!("the peer's certificate is refused: {error}"))
}
