//! `ambit-cni`, the program that container runtimes call (CNI 1.1.0, sections 2 and 5).
//!
//! Promises one JSON document on standard output, an end within [`LIMIT`], and the result of the plugins before it unchanged.
//! Whether a pod is to be in the mesh is the agent's decision; without one, that of [`super::fallback`].

use std::{
    collections::HashMap,
    env,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::IpAddr,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    process::{ExitCode, exit},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    fallback::{self, Verdict},
    protocol::{
        self, ANSWER_LIMIT, Answer, BINARY, Command, MAX_LINE, NetnsRef, Outcome, PodRef, Request,
        socket_path,
    },
    result,
};

/// How long a call may take at the very most: container runtimes give a pod's sandbox minutes.
const LIMIT: Duration = Duration::from_secs(25);
/// How long a busy agent may leave us waiting before it takes the call.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long a pod that has to wait for an agent waits here already, and how often is asked meanwhile.
const RETRY_FOR: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long the agent may take to hear that a pod is gone.
const NOTICE_LIMIT: Duration = Duration::from_secs(3);
/// The longest network configuration read, in bytes.
const MAX_CONF: u64 = 4 * 1024 * 1024;
const DEFAULT_RUN_DIR: &str = "/run/ambit";

/// Error codes: those of CNI, and our own from 100.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const TRY_AGAIN_LATER: u32 = 11;
    pub(super) const NOT_AVAILABLE: u32 = 50;
    pub(super) const NOT_ENROLLED: u32 = 100;
}

/// What the plugin needs of its network configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conf {
    cni_version: Option<String>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    prev_result: Value,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// An error as CNI wants it.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u32,
    msg: String,
    details: String,
}

/// One call of the plugin.
struct Call {
    environment: HashMap<String, String>,
    conf: Conf,
}

/// Serves the one request that environment and standard input make.
pub(crate) fn run() -> ExitCode {
    // Whoever prints first is the only one.
    static PRINTED: Mutex<()> = Mutex::new(());
    thread::spawn(|| {
        thread::sleep(LIMIT);
        let _first = PRINTED.lock();
        let text = format!("the ambit plugin has not come to an end within {LIMIT:?}");
        print(&Failure::later(text).document(None));
        exit(1);
    });
    let texts = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let environment: HashMap<String, String> = texts.filter(|(name, _)| name.starts_with("CNI_")).collect();
    let conf = read_conf(io::stdin().lock());
    let version = conf.as_ref().ok().and_then(|conf| conf.cni_version.clone());
    let done = conf.and_then(|conf| Call { environment, conf }.serve());
    let _first = PRINTED.lock();
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(document)) => {
            print(&document);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print(&failure.document(version.as_deref()));
            ExitCode::FAILURE
        }
    }
}

impl Call {
    /// What to print, if anything.
    fn serve(&self) -> Result<Option<Value>, Failure> {
        let command = self.variable("CNI_COMMAND")?;
        let version = self.conf.cni_version.as_deref().unwrap_or("0.1.0");
        if command == "VERSION" {
            return Ok(Some(json!({ "cniVersion": version, "supportedVersions": result::VERSIONS })));
        }
        if !result::speaks(version) {
            let msg = format!("cniVersion {version} is not supported");
            let details = format!("supported are {}", result::VERSIONS.join(", "));
            return Err(Failure { code: code::INCOMPATIBLE_VERSION, msg, details });
        }
        match command {
            "ADD" => self.add().map(|()| Some(result::convert(self.conf.prev_result.clone(), version))),
            "CHECK" => self.check().map(|()| None),
            "DEL" => self.tell(Command::Del, NOTICE_LIMIT).map(|()| None),
            "GC" => self.tell(Command::Gc, NOTICE_LIMIT).map(|()| None),
            "STATUS" => self.status().map(|()| None),
            other => Err(Failure::environment(format!("CNI_COMMAND {other:?} is none of CNI's commands"))),
        }
    }

    fn add(&self) -> Result<(), Failure> {
        let path = self.variable("CNI_NETNS")?;
        let container = self.variable("CNI_CONTAINERID")?;
        let Some(pod) = self.pod() else { return Ok(()) };
        let io = |source: io::Error| Failure {
            code: code::IO,
            msg: format!("CNI_NETNS {path}: {source}"),
            details: String::new(),
        };
        // Held until the answer is there: the agent takes it from here.
        let netns = File::open(path).map_err(io)?;
        let found = netns.metadata().map_err(io)?;
        let request = Request {
            command: Command::Add,
            container: container.to_owned(),
            pod: Some(pod.clone()),
            netns: Some(NetnsRef {
                path: path.to_owned(),
                fd: netns.as_raw_fd(),
                inode: (found.dev(), found.ino()),
            }),
            ips: self.addresses(),
            valid: Vec::new(),
        };
        let mut answer = self.ask(&request, ANSWER_LIMIT + CONNECT_LIMIT);
        let mut because = None;
        if !matches!(
            &answer,
            Ok(Answer { outcome: Outcome::Enrolled | Outcome::Passed | Outcome::Failed, .. })
        ) {
            match fallback::decide(self.state_dir(), &pod) {
                Verdict::Pass => return Ok(()),
                Verdict::Wait(why) => because = Some(why),
            }
            // An agent that is being replaced is back sooner than the kubelet would try again.
            let begun = Instant::now();
            while answer.is_err() && begun.elapsed() < RETRY_FOR {
                thread::sleep(RETRY_PAUSE);
                answer = self.ask(&request, ANSWER_LIMIT);
            }
        }
        let msg = match answer {
            Ok(Answer { outcome: Outcome::Enrolled | Outcome::Passed, .. }) => return Ok(()),
            Ok(Answer { message, .. }) => message,
            Err(error) => format!("the ambit agent of this node is not running ({error})"),
        };
        let because = because
            .map(|why| format!("{}/{} is to be in the mesh: {why}. {}", pod.namespace, pod.name, way_out()));
        Err(Failure { details: because.unwrap_or_default(), ..Failure::later(msg) })
    }

    /// An agent that is away does not make a pod wrong: its capture stays.
    fn check(&self) -> Result<(), Failure> {
        let Some(pod) = self.pod() else { return Ok(()) };
        let request = Request { pod: Some(pod), ..self.request(Command::Check) };
        match self.ask(&request, NOTICE_LIMIT) {
            Ok(Answer { outcome: Outcome::Failed, message }) => {
                Err(Failure { code: code::NOT_ENROLLED, msg: message, details: String::new() })
            }
            _ => Ok(()),
        }
    }

    /// The agent may be away, and what it does not hear it finds out.
    fn tell(&self, command: Command, limit: Duration) -> Result<(), Failure> {
        let valid = self.conf.valid_attachments.iter().flatten();
        let valid = valid.map(|attachment| attachment.container_id.clone()).collect();
        let request = Request { pod: self.pod(), valid, ..self.request(command) };
        let _unheard = self.ask(&request, limit);
        Ok(())
    }

    /// Without an agent the state that it left suffices to tell who has to wait; without both nothing does.
    fn status(&self) -> Result<(), Failure> {
        let Err(error) = self.ask(&self.request(Command::Status), NOTICE_LIMIT) else { return Ok(()) };
        fallback::can_decide(self.state_dir()).map_err(|unreadable| Failure {
            code: code::NOT_AVAILABLE,
            msg: format!("the ambit agent of this node is not running ({error})"),
            details: format!("and what it knew of the mesh is not to be had: {unreadable}"),
        })
    }

    fn ask(&self, request: &Request, limit: Duration) -> io::Result<Answer> {
        let run_dir = self.conf.run_dir.as_deref().unwrap_or(Path::new(DEFAULT_RUN_DIR));
        ask(&socket_path(run_dir), request, limit)
    }

    fn request(&self, command: Command) -> Request {
        let container = self.environment.get("CNI_CONTAINERID").cloned().unwrap_or_default();
        Request { command, container, pod: None, netns: None, ips: Vec::new(), valid: Vec::new() }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        result::addresses(&self.conf.prev_result)
    }

    fn state_dir(&self) -> &Path {
        let dir = self.conf.state_dir.as_deref().or(self.conf.run_dir.as_deref());
        dir.unwrap_or(Path::new(DEFAULT_RUN_DIR))
    }

    /// The pod; none if it is not Kubernetes that calls.
    fn pod(&self) -> Option<PodRef> {
        let arguments = self.environment.get("CNI_ARGS")?;
        let arguments: HashMap<&str, &str> =
            arguments.split(';').filter_map(|argument| argument.split_once('=')).collect();
        let value =
            |name| arguments.get(name).filter(|value| !value.is_empty()).map(|value| (*value).to_owned());
        Some(PodRef {
            namespace: value("K8S_POD_NAMESPACE")?,
            name: value("K8S_POD_NAME")?,
            uid: value("K8S_POD_UID"),
        })
    }

    fn variable(&self, name: &str) -> Result<&str, Failure> {
        let value = self.environment.get(name).filter(|value| !value.is_empty());
        value.map(String::as_str).ok_or_else(|| {
            Failure::environment(format!(
                "{name} is not set: {BINARY} is called by a container runtime, with the variables of CNI"
            ))
        })
    }
}

impl Failure {
    fn later(why: impl std::fmt::Display) -> Self {
        Self { code: code::TRY_AGAIN_LATER, msg: format!("try again later: {why}"), details: String::new() }
    }

    fn environment(msg: String) -> Self {
        Self { code: code::INVALID_ENVIRONMENT, msg, details: String::new() }
    }

    fn document(&self, version: Option<&str>) -> Value {
        let version = version.filter(|version| result::speaks(version)).unwrap_or("1.1.0");
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}

/// What to do where ambit was removed and has left its plugin.
fn way_out() -> String {
    let plugin = env::current_exe().unwrap_or_else(|_| BINARY.into());
    format!("If ambit was removed from this cluster, run on the node: {} uninstall --all", plugin.display())
}

/// Without a configuration, as VERSION may be called, everything has its default.
fn read_conf(input: impl Read) -> Result<Conf, Failure> {
    let mut text = String::new();
    let decode = |msg: String| Failure { code: code::DECODE, msg, details: String::new() };
    let unreadable = |error: io::Error| decode(format!("cannot read the network configuration: {error}"));
    let length = input.take(MAX_CONF + 1).read_to_string(&mut text).map_err(unreadable)?;
    if length as u64 > MAX_CONF {
        return Err(decode(format!("the network configuration is longer than {MAX_CONF} bytes")));
    }
    if text.trim().is_empty() {
        return Ok(Conf::default());
    }
    let wrong = |error| decode(format!("the network configuration is no such thing: {error}"));
    let fields: Map<String, Value> = serde_json::from_str(&text).map_err(wrong)?;
    Conf::deserialize(Value::Object(fields)).map_err(wrong)
}

/// One question to the agent at `socket`, and its answer within `limit`.
fn ask(socket: &Path, request: &Request, limit: Duration) -> io::Result<Answer> {
    let stream = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None)?;
    // Holds for connecting as well, if the agent's queue is full.
    stream.set_write_timeout(Some(CONNECT_LIMIT))?;
    stream.set_read_timeout(Some(limit))?;
    stream.connect(&SockAddr::unix(socket)?)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new((&stream).take(MAX_LINE)).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::other("the agent ended without an answer"));
    }
    protocol::read(&answer)
}

fn print(document: &Value) {
    // A runtime that does not read the answer gets none.
    let _unread = writeln!(io::stdout().lock(), "{document}");
}

#[cfg(test)]
mod tests;
