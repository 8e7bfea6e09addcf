//! What a certificate service's refusal means, and what the operator has to set for it.

use std::error::Error as _;

use tonic::{Code, Status};

use crate::{error::with_causes, identity::IssueError};

/// How much of a server's error text is kept.
const MAX_TEXT: usize = 512;

/// What became of a call that failed; `account` is the service account, as `NAMESPACE/NAME`, that the agent says to be.
pub(super) fn failure(status: &Status, account: Option<&str>) -> IssueError {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    if let Some(cause) = status.source() {
        text = format!("{text}: {}", with_causes(cause));
    }
    let mut text: String =
        text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some(hint) = hint(status.code(), &text, account) {
        text = format!("{text} ({hint})");
    }
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            IssueError::Unreachable(text)
        }
        _ => IssueError::Refused(text),
    }
}

/// istiod keeps its reasons to itself, and has but one text for each of these.
fn hint(code: Code, text: &str, account: Option<&str>) -> Option<String> {
    let account = account.unwrap_or("NAMESPACE/NAME of the agent's service account");
    if code == Code::Unauthenticated && text.contains("impersonation") {
        return Some(format!(
            "istiod signs for pods only where CA_TRUSTED_NODE_ACCOUNTS names the agent's service account: add {account} to that \
             variable of istiod, pilot.env.CA_TRUSTED_NODE_ACCOUNTS in its chart. Where it is there, istiod does not see the \
             identity's pod on the agent's node"
        ));
    }
    if code == Code::Unauthenticated && text.contains("authenticate failure") {
        return Some(format!(
            "istiod does not take the token of {account}: it must be of istiod's own cluster and for the audience that istiod \
             asks for, istio-ca by default, and --cluster-id must be what istiod calls the cluster"
        ));
    }
    text.contains("UnknownIssuer").then(|| {
        "the service's own certificate does not lead to the roots that the agent was given for it: --ca-root, or \
         --ca-root-config-map"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_is_missing_is_named() {
        let account = Some("ambit-system/ambit");
        for (status, refused, expected) in [
            (
                Status::unauthenticated("request impersonation authentication failure"),
                true,
                "CA_TRUSTED_NODE_ACCOUNTS names the agent's service account: add ambit-system/ambit",
            ),
            (Status::unauthenticated("request authenticate failure"), true, "the audience"),
            (Status::unavailable("tls: invalid peer certificate: UnknownIssuer"), false, "--ca-root"),
            (Status::permission_denied("not_on_node"), true, "PermissionDenied: not_on_node"),
        ] {
            let error = failure(&status, account);
            assert_eq!(matches!(error, IssueError::Refused(_)), refused, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_a_service_that_is_away() {
        for (status, refused) in [
            (Status::permission_denied("not on this node"), true),
            (Status::unauthenticated("who?"), true),
            (Status::resource_exhausted("later"), true),
            (Status::unavailable("tcp"), false),
            (Status::internal("tls"), false),
        ] {
            assert_eq!(matches!(failure(&status, None), IssueError::Refused(_)), refused, "{status}");
        }
        let long = failure(&Status::permission_denied("x\n".repeat(4096)), None).to_string();
        assert!(long.len() < 600 && !long.contains('\n'));
    }
}
