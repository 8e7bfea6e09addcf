//! The queries of one client that have no answer yet, by which answers are told from what somebody else sends.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use domain::base::{Message, Name, Rtype, iana::Class, name::ToName as _};

/// How long an answer is waited for: longer than resolvers' clients do.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Queries of one socket of a client's that are waited for at a time.
const MOST: usize = 4_096;

/// What was asked; `None` where it cannot be told.
type Asked = Option<(Name<Vec<u8>>, Rtype, Class)>;

/// Queries by their numbers.
#[derive(Default)]
pub(super) struct Pending {
    queries: HashMap<u16, (Asked, Instant)>,
}

impl Pending {
    /// A query goes out. A number that is used again stands for the later one. `false` if there are too many, or it is no message.
    pub(super) fn sent(&mut self, query: &[u8], now: Instant) -> bool {
        let Ok(message) = Message::from_octets(query) else { return false };
        if self.queries.len() >= MOST {
            self.forget(now);
        }
        let id = message.header().id();
        if self.queries.len() >= MOST && !self.queries.contains_key(&id) {
            return false;
        }
        self.queries.insert(id, (asked(&message), now));
        true
    }

    /// Whether that is the answer to one of them, which then waits no longer. Names are equal whatever their case (RFC 4343); an
    /// answer without a question says that the query could not be read.
    pub(super) fn received(&mut self, answer: &[u8]) -> bool {
        let Ok(message) = Message::from_octets(answer) else { return false };
        let id = message.header().id();
        let Some((query, _)) = self.queries.get(&id).filter(|_| message.header().qr()) else { return false };
        let same = match (query, message.header_counts().qdcount()) {
            (None, _) | (_, 0) => true,
            (query, _) => *query == asked(&message),
        };
        if same {
            self.queries.remove(&id);
        }
        same
    }

    /// Waits no longer for those that are too old; whether it waits for others.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        self.queries.retain(|_, (_, sent)| now.saturating_duration_since(*sent) < PATIENCE);
        !self.queries.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }
}

fn asked(message: &Message<&[u8]>) -> Asked {
    let question = message.sole_question().ok()?;
    Some((question.qname().to_name(), question.qtype(), question.qclass()))
}

#[cfg(test)]
mod tests {
    use domain::base::MessageBuilder;

    use super::*;

    fn message(id: u16, name: &str, answer: bool) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(id);
        builder.header_mut().set_qr(answer);
        let mut question = builder.question();
        question.push((name.parse::<Name<Vec<u8>>>().unwrap(), Rtype::A)).unwrap();
        question.finish()
    }

    #[test]
    fn only_the_answer_to_a_query_is_one_and_once() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        assert!(pending.sent(&message(7, "API.example.com", false), now));
        for (bad, why) in [
            (message(8, "api.example.com", true), "another number"),
            (message(7, "evil.example.com", true), "another name"),
            (message(7, "api.example.com", false), "a query"),
            (vec![0; 3], "no message"),
        ] {
            assert!(!pending.received(&bad), "{why}");
        }
        assert!(pending.received(&message(7, "api.EXAMPLE.com", true)));
        assert!(!pending.received(&message(7, "api.example.com", true)), "it waits no longer");
        // What could not be read is answered by the header alone.
        assert!(pending.sent(&message(9, "api.example.com", false), now));
        let mut bare = MessageBuilder::new_vec();
        bare.header_mut().set_id(9);
        bare.header_mut().set_qr(true);
        assert!(pending.received(&bare.finish()));
        assert!(pending.is_empty());
    }

    #[test]
    fn so_many_wait_and_so_long() {
        let (mut pending, now) = (Pending::default(), Instant::now());
        for id in 0..MOST {
            assert!(pending.sent(&message(id as u16, "a.example.com", false), now));
        }
        assert!(!pending.sent(&message(MOST as u16, "a.example.com", false), now));
        assert!(pending.sent(&message(1, "b.example.com", false), now), "one that replaces another has room");
        assert!(pending.sent(&message(MOST as u16, "a.example.com", false), now + PATIENCE));
        assert!(pending.forget(now + PATIENCE));
        assert!(!pending.forget(now + PATIENCE * 2));
    }
}
