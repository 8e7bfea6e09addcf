//! A crowd that connects and says nothing: what a server gives to it, others miss.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::TcpStream,
    runtime,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::certificates::trusting;

/// How `silence` is kept.
#[derive(Clone, Debug, clap::Args)]
pub struct Silence {
    /// The servers; each gets as many connections.
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
    /// Connections to each at a time.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// For this long, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    for_ms: u64,
    /// Silent after a TLS handshake; the roots that the server's certificate must lead to, PEM.
    #[arg(long, requires = "server_name")]
    root: Option<PathBuf>,
    /// The name that it must bear.
    #[arg(long)]
    server_name: Option<String>,
    /// A connection that is closed is not opened again.
    #[arg(long)]
    once: bool,
}

/// What came of silence.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Silent {
    /// Connections that came about, handshake included.
    pub opened: usize,
    /// Of them, those that the server closed.
    pub closed: usize,
    /// Attempts that the server turned away.
    pub refused: usize,
    /// The longest that one of those that were closed was open, in milliseconds.
    pub longest_ms: u64,
}

/// Between two attempts of one client.
const REST: Duration = Duration::from_secs(2);

pub(super) fn keep(how: &Silence) -> Result<Silent> {
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let end = Instant::now() + Duration::from_millis(how.for_ms);
        let tls = how.root.as_deref().map(trusting).transpose()?.map(|tls| TlsConnector::from(Arc::new(tls)));
        let name = ServerName::try_from(how.server_name.clone().unwrap_or_else(|| "localhost".to_owned()))?;
        let mut clients = JoinSet::new();
        for number in 0..how.connections {
            for to in &how.to {
                let (to, tls, name, once) = (*to, tls.clone(), name.clone(), how.once);
                clients.spawn(async move {
                    // Spread over the first second.
                    sleep(Duration::from_millis(number as u64 % 1_000)).await;
                    let mut told = Silent::default();
                    while Instant::now() < end {
                        let opened = timeout(REST, open(to, tls.clone(), name.clone())).await;
                        match opened {
                            Ok(Ok(stream)) => told.wait(stream, end).await,
                            Ok(Err(_)) | Err(_) => told.refused += 1,
                        }
                        if once {
                            break;
                        }
                        sleep(REST).await;
                    }
                    told
                });
            }
        }
        let mut all = Silent::default();
        while let Some(told) = clients.join_next().await {
            let told = told?;
            all.opened += told.opened;
            all.closed += told.closed;
            all.refused += told.refused;
            all.longest_ms = all.longest_ms.max(told.longest_ms);
        }
        Ok(all)
    })
}

async fn open(
    to: SocketAddr,
    tls: Option<TlsConnector>,
    name: ServerName<'static>,
) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let stream = TcpStream::connect(to).await?;
    Ok(match tls {
        None => Box::new(stream),
        Some(tls) => Box::new(tls.connect(name, stream).await?),
    })
}

impl Silent {
    /// Reads until the server closes, or until `end`.
    async fn wait(&mut self, mut stream: Box<dyn AsyncRead + Send + Unpin>, end: Instant) {
        self.opened += 1;
        let opened = Instant::now();
        let mut scrap = Vec::new();
        if timeout_at(end, stream.read_to_end(&mut scrap)).await.is_ok() {
            self.closed += 1;
            let took = u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.longest_ms = self.longest_ms.max(took);
        }
    }
}
