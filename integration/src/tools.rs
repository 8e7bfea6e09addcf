//! Small clients and servers that run inside pods where curl, nc, iperf3 and wrk cannot ask or do what a test needs.
//!
//! They are a verb of `ambit-integration`, so that one program is all a pod's namespace has to see. Each prints one JSON
//! object a line; servers say `ready` first.

mod certificates;
mod checks;
mod clients;
mod crowd;
mod flood;
mod grpc;
mod http;
mod node_init;
mod relay;
mod servers;
mod silence;
mod spans;
mod steps;
mod transfers;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::Subcommand;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(crate) use self::node_init::layer as node_layer;
pub use self::{
    certificates::{Answer, Issued},
    clients::{Attempt, FirstByte, Latency, Tally},
    crowd::CrowdTally,
    flood::FloodTally,
    grpc::Calls,
    http::BODY as HTTP_BODY,
    silence::Silent,
    steps::Seen,
};

/// Which tool, and how.
#[derive(Clone, Debug, Subcommand)]
pub enum Tool {
    /// Sends back what comes, and FIN after FIN.
    EchoServer(Listen),
    /// Speaks first: `peer <address> local <address>` and a line end, then FIN.
    WhoamiServer(Listen),
    /// Reads to FIN, then answers with the number of bytes read, a line end, and `--bytes` bytes of `x`.
    AnswerAfterEof(AnswerAfterEof),
    /// Reads something, then resets the connection.
    ResetServer(Listen),
    /// Serves HTTP/1.1: a fixed body on any GET, the request's body on POST.
    HttpServer(Listen),
    /// Connects once in a particular way and tells what came of it.
    Connect(Connect),
    /// Messages to an echo server and back, one at a time.
    PingPong(PingPong),
    /// Connections to an echo server, one after another, and how long each takes to its first byte.
    FirstByte(FirstBytes),
    /// Many connections to an echo server at the same time.
    Many(Many),
    /// Short connections to an echo server, one after another.
    Churn(Churn),
    /// In many network namespaces at once: a long connection to an echo server, and short ones beside it.
    Crowd(crowd::Crowd),
    /// Many connections that never finish what they begin.
    Flood(flood::Flood),
    /// Takes every connection, and writes to it but never reads.
    MuteServer(Listen),
    /// Answers gRPC calls with what they bring.
    GrpcServer(Listen),
    /// Calls that server as often as it answers.
    GrpcLoad(grpc::GrpcLoad),
    /// Prints the spans that it is sent by OTLP.
    SpanCollector(Listen),
    /// Decides, by Envoy's external authorization, for whom it is told to.
    CheckServer(checks::CheckServer),
    /// Asks a certificate service for one certificate.
    CreateCertificate(certificates::CreateCertificate),
    /// Asks certificate services for as many certificates as they give.
    IssueLoad(certificates::IssueLoad),
    /// Connects to servers, many times over, and says nothing.
    Silence(silence::Silence),
    /// Relays bytes, and does nothing else.
    Relay(relay::Relay),
    /// Takes transfers of which every byte is looked at.
    TransferServer(Listen),
    /// Makes them, with half-closes and resets.
    Transfers(transfers::Transfers),
    /// Is one end of a connection, and does what it is told.
    Steps(steps::Steps),
    /// The first process of a cluster's node.
    NodeInit(NodeInit),
}

/// Where a server listens.
#[derive(Clone, Debug, clap::Args)]
pub struct Listen {
    /// Address and port.
    #[arg(long)]
    pub listen: SocketAddr,
}

/// How `answer-after-eof` answers.
#[derive(Clone, Debug, clap::Args)]
pub struct AnswerAfterEof {
    /// Address and port.
    #[arg(long)]
    pub listen: SocketAddr,
    /// Length of the answer behind its first line.
    #[arg(long, default_value_t = 4_000_000)]
    pub bytes: usize,
}

/// How `connect` connects.
#[derive(Clone, Debug, clap::Args)]
pub struct Connect {
    /// The destination; an IPv4-mapped IPv6 address makes an IPv6 socket.
    #[arg(long)]
    pub to: SocketAddr,
    /// Bind to this source address first.
    #[arg(long)]
    pub bind: Option<SocketAddr>,
    /// Bind to this interface (`SO_BINDTODEVICE`).
    #[arg(long)]
    pub device: Option<String>,
    /// Set this `SO_MARK`.
    #[arg(long)]
    pub mark: Option<u32>,
    /// Use an `IPPROTO_MPTCP` socket.
    #[arg(long)]
    pub mptcp: bool,
    /// Open with `MSG_FASTOPEN`, the text in the SYN where the kernel has a cookie.
    #[arg(long)]
    pub fast_open: bool,
    /// Send this text once connected.
    #[arg(long, default_value = "")]
    pub send: String,
    /// Keep the sending side open while reading.
    #[arg(long)]
    pub no_fin: bool,
    /// The most to wait for connection and answer, in milliseconds.
    #[arg(long, default_value_t = 3_000)]
    pub limit_ms: u64,
}

/// How `ping-pong` plays.
#[derive(Clone, Debug, clap::Args)]
pub struct PingPong {
    /// The echo server.
    #[arg(long)]
    pub to: SocketAddr,
    /// Play for this long, in milliseconds.
    #[arg(long, default_value_t = 2_000)]
    pub for_ms: u64,
    /// Rest between two messages, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub rest_ms: u64,
    /// Length of a message.
    #[arg(long, default_value_t = MESSAGE, value_parser = message_length)]
    pub bytes: usize,
}

/// How `first-byte` connects.
#[derive(Clone, Debug, clap::Args)]
pub struct FirstBytes {
    /// The echo server.
    #[arg(long)]
    pub to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    pub count: usize,
}

/// How `many` loads.
#[derive(Clone, Debug, clap::Args)]
pub struct Many {
    /// The echo server.
    #[arg(long)]
    pub to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1_000)]
    pub connections: usize,
    /// How many of them are being opened at a time; all by default.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub opening: Option<u16>,
    /// How many messages each sends while all are open.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Says `holding` then, and keeps all open until standard input ends.
    #[arg(long)]
    pub hold: bool,
    /// While they are held, a message there and back on each, again and again after this rest, in milliseconds.
    #[arg(long, requires = "hold")]
    pub busy_every_ms: Option<u64>,
}

/// How `churn` loads.
#[derive(Clone, Debug, clap::Args)]
pub struct Churn {
    /// The echo server.
    #[arg(long)]
    pub to: SocketAddr,
    /// How many connections at most.
    #[arg(long, default_value_t = 20_000)]
    pub count: usize,
    /// Stop after this long in any case, in milliseconds.
    #[arg(long, default_value_t = 120_000)]
    pub for_ms: u64,
    /// Rest between two connections of a client, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub rest_ms: u64,
    /// So many clients at a time, each with its own count.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Stop when standard input ends, too.
    #[arg(long)]
    pub until_eof: bool,
}

/// What `node-init` is given.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeInit {
    /// Where what the node writes is kept.
    #[arg(long)]
    pub folder: PathBuf,
}

/// Runs a tool to its end; a server has none.
pub fn run(tool: &Tool) -> Result<()> {
    // 1,000 connections need more than the usual soft limit of 1,024 files.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    match tool {
        Tool::EchoServer(listen) => servers::echo(listen.listen),
        Tool::WhoamiServer(listen) => servers::whoami(listen.listen),
        Tool::AnswerAfterEof(how) => servers::answer_after_eof(how.listen, how.bytes),
        Tool::ResetServer(listen) => servers::reset(listen.listen),
        Tool::HttpServer(listen) => http::serve(listen.listen),
        Tool::Connect(how) => print(&clients::connect(how)),
        Tool::PingPong(how) => print(&clients::ping_pong(how)?),
        Tool::FirstByte(how) => print(&clients::first_bytes(how)?),
        Tool::Many(how) => print(&clients::many(how)?),
        Tool::Churn(how) => print(&clients::churn(how)),
        Tool::Crowd(how) => print(&crowd::run(how)?),
        Tool::Flood(how) => print(&flood::run(how)?),
        Tool::MuteServer(listen) => flood::mute(listen.listen),
        Tool::GrpcServer(listen) => grpc::serve(listen.listen),
        Tool::CheckServer(how) => checks::serve(how),
        Tool::SpanCollector(to) => spans::serve(to.listen),
        Tool::GrpcLoad(how) => print(&grpc::load(how)?),
        Tool::CreateCertificate(how) => print(&certificates::create(how)?),
        Tool::IssueLoad(how) => print(&certificates::load(how)?),
        Tool::Silence(how) => print(&silence::keep(how)?),
        Tool::Relay(how) => relay::run(how),
        Tool::TransferServer(listen) => transfers::server(listen.listen),
        Tool::Transfers(how) => print(&transfers::run(how)?),
        Tool::Steps(how) => print(&steps::take(how)?),
        Tool::NodeInit(how) => node_init::run(how),
    }
}

#[allow(clippy::print_stdout, reason = "the tool's answer to the harness")]
fn print(result: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

fn message_length(text: &str) -> Result<usize, String> {
    let bytes = text.parse().map_err(|_| "not a number".to_owned())?;
    if (8..=MESSAGE_LIMIT).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("between 8 and {MESSAGE_LIMIT}, as a message begins with its number"))
    }
}

const MESSAGE: usize = 128;
const MESSAGE_LIMIT: usize = 16 << 20;
const IO_LIMIT: Duration = Duration::from_secs(20);
