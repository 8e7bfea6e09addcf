//! External authorization: providers that CUSTOM policies name, asked about connections and requests.
//!
//! Promises an answer within the provider's time-out, and the configured one where there is none. Leaves to policy whether a
//! provider is asked, and to a [`Dialler`] how it is reached.

mod answer;
mod changes;
mod grpc;
mod http;
mod lane;
mod settings;
mod standing;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ::http::request::Parts;
use ambit_core::{model::SpiffeId, reason::Refusal};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

pub(crate) use self::{
    answer::Answer,
    changes::Changes,
    lane::PodKey,
    settings::{BodySettings, Form, HttpSettings, NamePattern, ProviderAddr, ProviderSettings},
    standing::Standing,
};
use self::{
    answer::{Denial, Failure, Verdict},
    lane::Lane,
    standing::Record,
};
use crate::telemetry::{CheckResult, Telemetry};

/// The providers of the configuration. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Providers(Arc<BTreeMap<Arc<str>, Provider>>);

/// What a provider is asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The client.
    pub(crate) source: SocketAddr,
    /// Its identity, as a SPIFFE ID; none in plaintext.
    pub(crate) peer: Option<&'a SpiffeId>,
    /// The pod and its port.
    pub(crate) destination: SocketAddr,
    /// The pod's identity.
    pub(crate) own: &'a SpiffeId,
    /// The request; `None` for a connection that is not HTTP.
    pub(crate) request: Option<&'a Parts>,
    /// The body's beginning, and whether it is all of it; where the provider wants that.
    pub(crate) body: Option<(&'a [u8], bool)>,
}

/// Reaches providers as the pod under protection would.
pub(crate) trait Dialler: Send + Sync {
    /// Whose connections are kept apart from those of others: the pod's UID, and the address that it dials from.
    fn pod(&self) -> PodKey;

    /// Whether the port of the pod that is called is itself one of the provider's.
    fn is_called_at(&self, provider: &ProviderAddr) -> bool;

    /// A new connection to the provider.
    fn dial<'a>(&'a self, provider: &'a ProviderAddr) -> Dialling<'a>;
}

/// A connection that comes about.
pub(crate) type Dialling<'a> = Pin<Box<dyn Future<Output = Result<Dialled, Refusal>> + Send + 'a>>;

/// A connection to a provider.
pub(crate) struct Dialled {
    /// The bytes.
    pub(crate) stream: Box<dyn Bytes>,
    /// Ends once it may not be used any more.
    pub(crate) revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// A connection's two directions.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

#[derive(Debug)]
struct Provider {
    settings: ProviderSettings,
    telemetry: Telemetry,
    record: Record,
    /// Its connections, by the pod in whose name they are.
    lanes: Mutex<HashMap<PodKey, Arc<Lane>>>,
}

impl Providers {
    /// Those that are configured; no two have the same name.
    pub(crate) fn new(settings: impl IntoIterator<Item = ProviderSettings>, telemetry: &Telemetry) -> Self {
        let provider = |settings: ProviderSettings| {
            let (telemetry, record, lanes) = (telemetry.clone(), Record::default(), Mutex::default());
            (settings.name.clone(), Provider { settings, telemetry, record, lanes })
        };
        Self(Arc::new(settings.into_iter().map(provider).collect()))
    }

    /// How much of a body the provider of that name wants to see, in bytes; 0 where it wants none.
    pub(crate) fn wants_body(&self, provider: &str) -> usize {
        self.0.get(provider).and_then(|provider| provider.settings.body).map_or(0, |body| body.max_bytes)
    }

    /// Asks the provider of that name. One that is not configured denies.
    pub(crate) async fn ask(&self, provider: &str, subject: &Subject<'_>, dialler: &dyn Dialler) -> Answer {
        let Some(asked) = self.0.get(provider) else {
            let why = format!(
                "the provider {provider} is not among the agent's extension providers: configure it, or mend the policy"
            );
            return Denial::forbidden(why).into();
        };
        // Whoever comes to a provider may be an agent that asks: to ask about that would never end.
        match self.0.values().find(|called| dialler.is_called_at(&called.settings.addr)) {
            Some(called) => {
                let why = format!(
                    "this is the port of the provider {}, and no provider is asked about who may come to one: exclude its pods \
                     from CUSTOM policies",
                    called.settings.name
                );
                asked.telemetry.checked(&asked.settings.name, CheckResult::Denied, Duration::ZERO);
                Denial::forbidden(why).into()
            }
            None => asked.ask(subject, dialler).await,
        }
    }

    /// How each provider stands, by its name.
    pub(crate) fn standing(&self) -> Vec<Standing> {
        self.0.values().map(|provider| provider.record.standing(&provider.settings)).collect()
    }

    /// Closes connections that have rested long, and those of pods (by UID) that are not `local` any more.
    pub(crate) fn sweep(&self, local: impl Fn(&str) -> bool) {
        let now = Instant::now();
        for provider in self.0.values() {
            provider.lanes().retain(|key, lane| local(&key.uid) && !lane.rests(now));
        }
    }
}

impl Provider {
    async fn ask(&self, subject: &Subject<'_>, dialler: &dyn Dialler) -> Answer {
        if let Some(denial) = self.unaskable(subject) {
            self.telemetry.checked(&self.settings.name, CheckResult::Denied, Duration::ZERO);
            return denial.into();
        }
        let started = Instant::now();
        let asked = timeout(self.settings.timeout, self.verdict(subject, dialler)).await;
        let verdict = asked.unwrap_or_else(|_| {
            // It may be the connection that leads nowhere any more.
            self.lane(dialler.pod()).give_up_http2();
            let limit = humantime::format_duration(self.settings.timeout);
            Err(Failure::new(CheckResult::TimedOut, format!("it has not answered within {limit}")))
        });
        let (answer, result) = self.settle(verdict);
        self.telemetry.checked(&self.settings.name, result, started.elapsed());
        answer
    }

    /// Why it is not asked, whatever it would say.
    fn unaskable(&self, subject: &Subject<'_>) -> Option<Denial> {
        let name = &self.settings.name;
        if matches!(self.settings.form, Form::Http(_)) && subject.request.is_none() {
            let why = format!(
                "the provider {name} speaks HTTP and can only be asked about HTTP requests; one of envoyExtAuthzGrpc can be \
                 asked about any connection"
            );
            return Some(Denial::forbidden(why));
        }
        if self.settings.body.is_some_and(|body| !body.allow_partial)
            && subject.body.is_some_and(|(_, whole)| !whole)
        {
            let why = format!("the body is longer than the provider {name} takes");
            return Some(Denial { status: ::http::StatusCode::PAYLOAD_TOO_LARGE, ..Denial::forbidden(why) });
        }
        None
    }

    async fn verdict(&self, subject: &Subject<'_>, dialler: &dyn Dialler) -> Result<Verdict, Failure> {
        let lane = self.lane(dialler.pod());
        let _place = lane.place().await;
        match (&self.settings.form, subject.request) {
            (Form::Grpc, _) => grpc::check(&self.settings, &lane, subject, dialler).await,
            (Form::Http(form), Some(head)) => {
                http::check(&self.settings, form, &lane, (head, subject.body), dialler).await
            }
            (Form::Http(_), None) => Err(Failure::new(CheckResult::Failed, "there is no request".to_owned())),
        }
    }

    /// What the one who asked is told, and what it counts as.
    fn settle(&self, verdict: Result<Verdict, Failure>) -> (Answer, CheckResult) {
        let name = &self.settings.name;
        match verdict {
            Ok(verdict) => {
                if self.record.answered(verdict.is_admitted()) {
                    tracing::info!(provider = %name, "the authorization provider answers again");
                }
                match verdict {
                    Verdict::Admitted(changes) => (Answer::Admitted(changes), CheckResult::Allowed),
                    Verdict::Denied(denial) => (denial.into(), CheckResult::Denied),
                }
            }
            Err(failure) => {
                let Failure { result, why, answer } = failure;
                let why = format!("the provider {name} cannot be asked: {why}");
                let fail_open = self.settings.fail_open;
                if self.record.failed(SystemTime::now(), &why) {
                    tracing::warn!(provider = %name, fail_open, error = why, "an authorization provider fails");
                }
                if fail_open {
                    return (Answer::Admitted(Changes::default()), CheckResult::FailedOpen);
                }
                let status = self.settings.status_on_error;
                let denial = answer
                    .map_or_else(|| Denial { status, ..Denial::forbidden(String::new()) }, |answer| *answer);
                (Denial { why: why.into(), ..denial }.into(), result)
            }
        }
    }

    fn lane(&self, pod: PodKey) -> Arc<Lane> {
        self.lanes().entry(pod).or_default().clone()
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<PodKey, Arc<Lane>>> {
        // A panic cannot leave the map half changed.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;
