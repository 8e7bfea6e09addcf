//! External authorization as the proxy has it: whom policy wants asked is asked in the name of the pod under protection, from its
//! address and with its identity, so that policies of the provider's own pods are about that pod.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ambit_core::{
    discovery::{ClientTls, Endpoint, Mesh, Route},
    model::{ObjectName, OriginalDst, Workload},
    policy::{self, External, Facts},
    reason::{Reason, Refusal},
};
use tokio::{net::lookup_host, select, time::timeout};

use super::{
    Cut, Pod, Shared,
    order::Numbers,
    outbound::{CONNECT, is_itself, unroutable},
    sessions::new_session,
    unconnected, within,
};
use crate::{
    authz::{Answer, Dialled, Dialler, Dialling, PodKey, ProviderAddr, Subject},
    capture::{Dial, end_cleanly},
    tunnel::{ANSWERED_WITHIN, Incoming, LegError},
};

/// Asks a provider about what comes to the pod `workload`.
pub(super) async fn ask<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    workload: &Workload,
    provider: &str,
    subject: &Subject<'_>,
) -> Answer {
    let dialler = AsPod { shared, pod, workload, called: subject.destination };
    shared.providers.ask(provider, subject, &dialler).await
}

/// Asks whom policy wants asked about a connection of which no request is known; `Ok` says whether somebody has let it in.
pub(super) async fn admitted<D: Dial>(
    shared: &Shared,
    pod: &Pod<D>,
    workload: &Workload,
    source: SocketAddr,
    facts: &Facts<'_>,
) -> Result<bool, Refusal> {
    let external = policy::external(&pod.policy.borrow(), facts);
    let (provider, name, rule) = match external {
        External::Nobody => return Ok(false),
        External::Refused(refusal) => return Err(refusal),
        External::Ask { provider, policy, rule } => (provider, policy, rule),
    };
    let subject = Subject {
        source,
        peer: facts.peer,
        destination: SocketAddr::new(facts.destination_ip, facts.port),
        own: &workload.identity,
        request: None,
        body: None,
    };
    match ask(shared, pod, workload, &provider, &subject).await {
        Answer::Admitted(_) => Ok(true),
        Answer::Denied { why, .. } => Err(denied(&name, rule, why)),
    }
}

/// The refusal of what the provider of a CUSTOM policy has not let in.
fn denied(policy: &ObjectName, rule: usize, why: Arc<str>) -> Refusal {
    Refusal {
        policy: Some(policy.to_string().into()),
        rule: Some(format!("rules[{rule}]").into()),
        ..Refusal::new(Reason::ProviderRefused, why)
    }
}

/// Dials as the pod that is called would.
pub(super) struct AsPod<'a, D> {
    pub(super) shared: &'a Shared,
    pub(super) pod: &'a Pod<D>,
    pub(super) workload: &'a Workload,
    /// Where.
    pub(super) called: SocketAddr,
}

impl<D: Dial> Dialler for AsPod<'_, D> {
    fn pod(&self) -> PodKey {
        PodKey { uid: self.workload.uid.clone(), source: self.called.ip() }
    }

    fn is_called_at(&self, provider: &ProviderAddr) -> bool {
        let mesh = &self.shared.feed.world().mesh;
        if let Ok(ip) = provider.host.parse::<IpAddr>() {
            return SocketAddr::new(ip, provider.port) == self.called;
        }
        let Ok(Some(name)) = named(mesh, provider) else { return false };
        let Some(service) = mesh.service(&name) else { return false };
        let behind = mesh.behind(service, provider.port);
        behind.iter().any(|(pod, port)| pod.uid == self.workload.uid && *port == self.called.port())
    }

    fn dial<'a>(&'a self, provider: &'a ProviderAddr) -> Dialling<'a> {
        Box::pin(async move {
            match self.route(provider).await? {
                Way::Tunnel(endpoint) => self.tunnel(&endpoint).await,
                Way::Plain(to) => self.plain(to).await,
            }
        })
    }
}

/// An error where a DestinationRule wants TLS to the provider, which agents do not speak to providers.
fn speaks_plainly(endpoint: &Endpoint) -> Result<(), Refusal> {
    let Some(rule) = &endpoint.rule else { return Ok(()) };
    match rule.settings.tls {
        ClientTls::Unset | ClientTls::Disable => Ok(()),
        ClientTls::IstioMutual if endpoint.workload.enrolled => Ok(()),
        ClientTls::IstioMutual | ClientTls::Originate(_) | ClientTls::Unusable(_) => {
            let text = format!(
                "DestinationRule {} wants TLS to {}, and providers are asked without: give their host a rule of its own with mode DISABLE",
                rule.settings.rule, rule.host
            );
            Err(Refusal::new(Reason::RuleUnusable, text))
        }
    }
}

enum Way {
    Tunnel(Endpoint),
    Plain(SocketAddr),
}

enum Known {
    Route(Route),
    Ip(IpAddr),
    /// Nothing.
    Not,
}

impl<D: Dial> AsPod<'_, D> {
    async fn route(&self, provider: &ProviderAddr) -> Result<Way, Refusal> {
        let ip = match self.known(provider)? {
            Known::Route(route) => {
                return self.way(route, SocketAddr::new(self.called.ip(), provider.port)).await;
            }
            Known::Ip(ip) => ip,
            Known::Not => self.looked_up(provider).await?,
        };
        let to = SocketAddr::new(ip, provider.port);
        let route =
            self.shared.feed.world().mesh.route(self.workload, OriginalDst(to), rand::random(), |_| None);
        self.way(route, to).await
    }

    /// What is known of a provider without DNS.
    fn known(&self, provider: &ProviderAddr) -> Result<Known, Refusal> {
        if let Ok(ip) = provider.host.parse() {
            return Ok(Known::Ip(ip));
        }
        let world = self.shared.feed.world();
        let Some(service) = named(&world.mesh, provider)? else { return Ok(Known::Not) };
        let route = world.mesh.route_by_name(self.workload, &service, provider.port, rand::random());
        route.map(Known::Route).ok_or_else(|| unknown(&service))
    }

    /// An address of a host, of the family at which the pod is called if there is one.
    async fn looked_up(&self, provider: &ProviderAddr) -> Result<IpAddr, Refusal> {
        let ProviderAddr { host, port, .. } = provider;
        let unknown = |why: &str| Refusal::new(Reason::Unreachable, format!("the host {host} {why}"));
        let found = within(CONNECT, lookup_host((host.as_str(), *port))).await;
        let found = found.map_err(|error| unknown(&format!("cannot be found: {error}")))?;
        let mut found: Vec<IpAddr> = found.map(|found| found.ip().to_canonical()).collect();
        found.sort_by_key(|ip| ip.is_ipv4() != self.called.is_ipv4());
        found.first().copied().ok_or_else(|| unknown("has no address"))
    }

    async fn way(&self, route: Route, to: SocketAddr) -> Result<Way, Refusal> {
        let route = match route {
            Route::Resolve(named) => {
                let found =
                    self.shared.egress.names.resolve(&named, self.called.ip(), rand::random(), &[]).await?;
                self.shared.feed.world().mesh.route_named(self.workload, &named, found, rand::random())
            }
            route => route,
        };
        if let Route::Tunnel(endpoint) | Route::Plain(endpoint) = &route {
            speaks_plainly(endpoint)?;
        }
        Ok(match route {
            // What a pod says to itself passes nobody.
            Route::Tunnel(endpoint) if is_itself(self.workload, &endpoint.workload) => {
                Way::Plain(endpoint.addr.0)
            }
            Route::Tunnel(endpoint) => Way::Tunnel(endpoint),
            Route::Plain(endpoint) => Way::Plain(endpoint.addr.0),
            Route::Passthrough => Way::Plain(to),
            Route::Resolve(named) => {
                let text = format!("{} leads to another name", named.service.host);
                return Err(Refusal::new(Reason::NameUnresolved, text));
            }
            Route::Refuse(error) => return Err(unroutable(&error)),
        })
    }

    /// A session of its own: it lasts, and those that connections share are for one after another.
    async fn tunnel(&self, endpoint: &Endpoint) -> Result<Dialled, Refusal> {
        let source = self.source(endpoint.addr.0)?;
        let session = new_session(self.shared, self.pod, source, self.workload, endpoint, None).await?;
        let peer = session.facts().peer.clone();
        let mut stream = session.open(
            Incoming {
                original_dst: endpoint.addr.0,
                service: endpoint.service.as_ref().map(|service| service.host.to_string()),
                trace: None,
                order: Numbers::new().next(endpoint.addr),
                waits: true,
                strand: None,
            },
            None,
        );
        let confirmed = timeout(ANSWERED_WITHIN, stream.confirmed(false)).await;
        let late = || {
            let text = "the other agent does not say whether the provider answers";
            Err(LegError::Here(Refusal::new(Reason::Timeout, text)))
        };
        if let Err(error) = confirmed.unwrap_or_else(|_| late()) {
            let cut = Cut::by_leg(error);
            let text = || Refusal::new(Reason::Reset, "the provider's agent has left");
            let refusal = cut.refusal.unwrap_or_else(text);
            tokio::spawn(stream.close(None));
            return Err(refusal);
        }
        let (wallet, own) = (self.shared.wallet.clone(), self.workload.identity.clone());
        let pod = self.pod.pod.clone();
        let revoked = Box::pin(async move {
            select! {
                _ = wallet.until_distrusted(&own, &peer) => {}
                () = pod.until_released() => {}
            }
        });
        Ok(Dialled { stream: Box::new(stream), revoked })
    }

    async fn plain(&self, to: SocketAddr) -> Result<Dialled, Refusal> {
        let source = self.source(to)?;
        let tcp = within(CONNECT, self.pod.pod.dial_plain(source, to))
            .await
            .map_err(|error| unconnected("the provider at", to, &error))?;
        end_cleanly(&tcp);
        let pod = self.pod.pod.clone();
        let revoked = Box::pin(async move { pod.until_released().await });
        Ok(Dialled { stream: Box::new(tcp), revoked })
    }

    /// The pod's address for a connection there: the one at which it is called, if that will do.
    fn source(&self, to: SocketAddr) -> Result<IpAddr, Refusal> {
        let own = self.workload.ips.iter().copied();
        let mut own = std::iter::once(self.called.ip()).chain(own);
        own.find(|ip| ip.is_ipv4() == to.is_ipv4()).ok_or_else(|| {
            let text = format!("the pod has no address of the family of {}", to.ip());
            Refusal::new(Reason::Unreachable, text)
        })
    }
}

/// The service of the cluster that a provider is said to be, if it is said to be one.
fn named(mesh: &Mesh, provider: &ProviderAddr) -> Result<Option<ObjectName>, Refusal> {
    mesh.provider_service(provider.namespace.as_deref(), &provider.host).map_err(|service| unknown(&service))
}

fn unknown(service: &ObjectName) -> Refusal {
    Refusal::new(Reason::NoEndpoint, format!("there is no service {service}"))
}
