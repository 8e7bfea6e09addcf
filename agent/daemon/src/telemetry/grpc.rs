//! How many messages went over a gRPC call, by the five bytes before each: a flag and the length.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

/// Counts the messages of one direction as its bytes go by, in whatever pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct GrpcMessages {
    messages: u64,
    /// Bytes of the current message that are still to come.
    missing: u64,
    /// What is there of the next prefix.
    prefix: [u8; 5],
    filled: usize,
}

impl GrpcMessages {
    /// The next bytes.
    pub(crate) fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.missing > 0 {
                let here = usize::try_from(self.missing).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[here..];
                self.missing -= here as u64;
                continue;
            }
            let here = (self.prefix.len() - self.filled).min(bytes.len());
            self.prefix[self.filled..self.filled + here].copy_from_slice(&bytes[..here]);
            bytes = &bytes[here..];
            self.filled += here;
            if self.filled == self.prefix.len() {
                let [_, length @ ..] = self.prefix;
                self.missing = u64::from(u32::from_be_bytes(length));
                self.filled = 0;
                self.messages += 1;
            }
        }
    }

    /// How many messages have begun.
    pub(crate) fn count(&self) -> u64 {
        self.messages
    }
}

#[cfg(test)]
mod tests {
    use super::GrpcMessages;

    #[test]
    fn messages_are_counted_in_whatever_pieces_they_come() {
        let message = |length: u8| [&[0, 0, 0, 0, length][..], &vec![7; length.into()]].concat();
        let bytes = [message(3), message(0), message(200)].concat();
        for piece in 1..=bytes.len() {
            let mut messages = GrpcMessages::default();
            bytes.chunks(piece).for_each(|piece| messages.see(piece));
            assert_eq!(messages.count(), 3, "in pieces of {piece}");
        }
    }
}
