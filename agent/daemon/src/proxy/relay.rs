//! Moves bytes between an application and a tunnel, or between two plaintext sockets, each direction until its own end:
//! half-close and reset stay what they are.

use std::{io, time::Duration};

use ambit_core::{
    frame::Control,
    reason::{Reason, Refusal},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};

use crate::capture::end_cleanly;
use crate::tunnel::{Buffer, Link, MoveError, Received, TunnelError};

/// How long ACCEPT waits for the application's first bytes, to go out with them. The client's agent only learns from it that
/// there will be no refusal.
const ANSWER: Duration = Duration::from_millis(5);

/// Counts bytes as they pass.
pub(super) trait Meter {
    /// Bytes from the application's socket.
    fn app_sent(&self, bytes: u64);
    /// Bytes to the application's socket.
    fn app_got(&self, bytes: u64);
}

/// Why a relay ended before both directions had.
#[derive(Debug)]
pub(super) enum RelayError {
    /// The application, or whoever is at its end, reset the connection.
    App(io::Error),
    /// The peer reset the stream.
    Reset(Reason),
    /// The peer refused the stream.
    Denied(Refusal),
    /// The tunnel failed.
    Tunnel(TunnelError),
}

impl From<TunnelError> for RelayError {
    fn from(error: TunnelError) -> Self {
        Self::Tunnel(error)
    }
}

impl From<MoveError> for RelayError {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::Source(error) => Self::App(error),
            MoveError::Tunnel(error) => Self::Tunnel(error),
        }
    }
}

/// Runs one stream: says `hello` (OPEN or ACCEPT) and relays until both directions have ended. The client's side waits
/// for ACCEPT while its first bytes are already on the way.
pub(super) async fn stream(
    app: &mut TcpStream,
    link: &mut Link,
    hello: &Control,
    meter: &impl Meter,
) -> Result<(), RelayError> {
    let opens = matches!(hello, Control::Open(_));
    let mut awaits_accept = opens;
    let (mut app_read, mut app_write) = app.split();
    let (mut reader, mut writer) = link.split();
    writer.hold(hello);
    let up = async {
        let mut ended = false;
        if opens {
            let sent = writer.send_now(&mut app_read).await?;
            meter.app_sent(sent.bytes as u64);
            ended = sent.end;
        } else if timeout(ANSWER, app_read.readable()).await.is_err() {
            writer.flush().await?;
        }
        while !ended {
            let sent = writer.send_from(&mut app_read).await?;
            meter.app_sent(sent.bytes as u64);
            ended = sent.end;
        }
        Ok(())
    };
    let down = async {
        loop {
            match reader.receive().await? {
                Received::Data(_) if awaits_accept => return Err(TunnelError::Unexpected("DATA").into()),
                Received::Data(pieces) => {
                    pieces.write_to(&mut app_write).await.map_err(RelayError::App)?;
                    meter.app_got(pieces.len() as u64);
                }
                Received::Control(Control::Accept) if awaits_accept => awaits_accept = false,
                Received::Control(Control::Deny(deny)) if awaits_accept => {
                    return Err(RelayError::Denied(deny));
                }
                Received::Control(Control::Fin) if !awaits_accept => break,
                Received::Control(Control::Reset(reason)) => return Err(RelayError::Reset(reason)),
                Received::Control(Control::Ping | Control::GoAway) => {}
                Received::Control(_) => return Err(TunnelError::Unexpected("control").into()),
            }
        }
        finish(&mut app_write).await.map_err(RelayError::App)
    };
    tokio::try_join!(up, down)?;
    end_cleanly(app);
    Ok(())
}

/// Relays between two plaintext sockets; `app` is the metered one.
pub(super) async fn plain(app: &mut TcpStream, other: &mut TcpStream, meter: &impl Meter) -> io::Result<()> {
    let (mut app_read, mut app_write) = app.split();
    let (mut other_read, mut other_write) = other.split();
    let up = copy(&mut app_read, &mut other_write, |bytes| meter.app_sent(bytes));
    let down = copy(&mut other_read, &mut app_write, |bytes| meter.app_got(bytes));
    tokio::try_join!(up, down)?;
    end_cleanly(app);
    end_cleanly(other);
    Ok(())
}

async fn copy(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, count: impl Fn(u64)) -> io::Result<()> {
    loop {
        // An idle connection holds no buffer.
        from.readable().await?;
        let mut buffer = Buffer::take();
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return finish(to).await;
        }
        to.write_all(&buffer[..read]).await?;
        count(read as u64);
    }
}

async fn finish(to: &mut WriteHalf<'_>) -> io::Result<()> {
    match to.shutdown().await {
        // The other end has closed both ways already.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
