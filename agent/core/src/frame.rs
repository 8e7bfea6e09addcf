//! The codec of the tunnel protocol `ambit/1`.
