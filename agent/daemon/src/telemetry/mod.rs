//! Live connections, metrics and the access log. Watches, never decides.
