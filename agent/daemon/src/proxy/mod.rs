//! The two directions of a connection and the relay between their two sockets.
