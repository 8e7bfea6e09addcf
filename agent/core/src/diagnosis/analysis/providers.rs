//! External providers that CUSTOM policies name: whether they are where they are said to be, and can be asked there.

use super::{Level, Report, Subject};
use crate::{
    discovery::{Protocol, ProviderPlace},
    model::ObjectName,
    policy::{Action, AuthorizationPolicy},
};

const FIELD: &str = "spec.provider.name";

pub(super) fn look(report: &mut Report<'_>) {
    let mesh = report.cluster.mesh;
    let places = &mesh.settings().provider_places;
    for policy in report.readable().into_iter().filter(|policy| policy.action == Action::Custom) {
        let named = places.iter().find(|place| policy.provider.as_ref() == Some(&place.provider));
        if let Some(place) = named {
            look_at(report, policy, place);
        }
        for place in places {
            look_for_itself(report, policy, place);
        }
    }
}

/// Whether the provider is there.
fn look_at(report: &mut Report<'_>, policy: &AuthorizationPolicy, place: &ProviderPlace) {
    let mesh = report.cluster.mesh;
    let ProviderPlace { provider, namespace, host, port } = place;
    let missing = match mesh.provider_service(namespace.as_deref(), host) {
        Err(service) => format!("service {service}, which is not there"),
        Ok(Some(name)) if !has_port(report, &name, *port) => {
            format!("port {port} of service {name}, which has no such port")
        }
        Ok(_) => return,
    };
    let message =
        format!("the provider {provider} is said to be at {missing}: what the policy matches is refused");
    report.add("provider-not-there", Level::Error, &Subject::authorization(policy), FIELD, message);
}

fn has_port(report: &Report<'_>, service: &ObjectName, port: u16) -> bool {
    let service = report.cluster.mesh.service(service);
    service.is_some_and(|service| {
        service.ports.iter().any(|own| own.port == port && own.protocol == Protocol::Tcp)
    })
}

/// Whether the policy is for the provider's own pods.
fn look_for_itself(report: &mut Report<'_>, policy: &AuthorizationPolicy, place: &ProviderPlace) {
    let mesh = report.cluster.mesh;
    let service = mesh.provider_service(place.namespace.as_deref(), &place.host).ok().flatten();
    let Some(service) = service.as_ref().and_then(|name| mesh.service(name)) else { return };
    let behind = mesh.behind(service, place.port);
    let caught = behind
        .iter()
        .find(|(pod, _)| pod.enrolled && report.cluster.is_for(&policy.name, &policy.target, pod));
    if let Some((pod, port)) = caught {
        let provider = &place.provider;
        let message = format!(
            "the policy is for pod {} of the provider {provider}: what it matches on port {port} is refused, agents that ask \
             included, as nobody is asked about who may come to a provider. Exclude it by the selector, or by ports",
            pod.name
        );
        report.add(
            "provider-asked-about-itself",
            Level::Warning,
            &Subject::authorization(policy),
            "",
            message,
        );
    }
}
