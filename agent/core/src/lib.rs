//! The pure logic of ambit: no sockets, no clock, no randomness, no environment.
//!
//! What changes with the world is an argument: time, random numbers, Kubernetes objects, bytes from a peer.
//! Every room can be tested by table and simulated in memory.

pub mod crowd;
pub mod diagnosis;
pub mod discovery;
pub mod frame;
pub mod model;
pub mod policy;
pub mod reason;
pub mod rotation;
