//! Clients that are not connected yet, because it is not known whether their destination answers: what they are told, and
//! that nobody goes on for one that has given up.

use ambit_core::reason::{Reason, Refusal};
use tokio::{net::TcpStream, select};

use crate::capture::{Answer, Client};

/// What `work` brings, unless `client` gives up before.
pub(super) async fn unless_given_up<T, E: From<Refusal>>(
    client: &mut Client,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    select! {
        biased;
        done = work => done,
        () = client.until_given_up() => Err(given_up().into()),
    }
}

/// The client's connection.
pub(super) async fn admit(client: Client) -> Result<TcpStream, Refusal> {
    client.admit().await.map_err(|_| given_up())
}

/// Ends what the client wanted, as it would have ended without us: a policy's no is a closed port.
pub(super) fn refuse(client: Client, refusal: &Refusal) {
    client.answer(match refusal.reason {
        Reason::Timeout => Answer::Silence,
        Reason::Unreachable => Answer::Unreachable,
        _ => Answer::Refused,
    });
}

fn given_up() -> Refusal {
    Refusal::new(Reason::Timeout, "the client gave up before it was connected")
}
