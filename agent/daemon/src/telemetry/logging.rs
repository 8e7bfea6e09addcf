//! The log: filter, line format, and the way to standard error.
//!
//! A line is handed to a thread of its own over a bounded queue, so a reader of the log that stalls never stalls a
//! connection; what the queue cannot take is counted and reported once there is room.

mod line;
mod queue;

use std::{fmt, str::FromStr};

use tracing_subscriber::{EnvFilter, filter, layer::SubscriberExt, util::SubscriberInitExt};

pub(crate) use queue::LogGuard;

pub(super) use line::{FieldWriter, Lines};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `time<TAB>level<TAB>target<TAB>message<TAB>k=v …`
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `target`, `message`, then the fields.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a log format; use text or json")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggingError {
    /// The filter is not of the form that RUST_LOG takes.
    #[error("{filter:?} is not a log filter (such as \"info,access=warn\")")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: filter::ParseError,
    },
    /// The thread that writes the log could not be started.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
    /// Logging was set up before.
    #[error("logging is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Whether `text` is a filter of the form that RUST_LOG takes.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|source| LoggingError::Filter { filter: text.to_owned(), source })
}

/// Of what the Kubernetes client meets the agent tells in its own words, and once: the client itself, at every attempt.
/// A filter that names it goes before.
fn with_quiet_libraries(filter: &str) -> String {
    let quiet = ["kube_client", "kube_runtime"].into_iter().filter(|target| !filter.contains(target));
    quiet.fold(filter.to_owned(), |filter, target| format!("{filter},{target}=off"))
}

/// Sends the log of the whole process to standard error until the guard is dropped, which writes out what is queued.
pub(crate) fn init_logging(filter: &str, format: LogFormat) -> Result<LogGuard, LoggingError> {
    let filter = parse_filter(&with_quiet_libraries(filter))?;
    let on_loss = |lines| tracing::warn!(lines, "log lines were lost: the reader of the log is too slow");
    let (writer, guard) = queue::start(std::io::stderr(), on_loss).map_err(LoggingError::Thread)?;
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines(format))
        .fmt_fields(Lines(format))
        .with_ansi(false)
        .with_writer(move || writer.clone());
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(LoggingError::Twice)?;
    Ok(guard)
}
