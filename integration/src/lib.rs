//! Nodes and pods as network namespaces, real clients and servers, load harness.
//!
//! What stands on a machine for a test run is owned by a [`sandbox::Sandbox`] and swept from outside whatever happens to
//! the process that made it. The daemon is used through its command line only.

pub mod agent;
pub mod bench;
pub mod ca;
pub mod capture;
pub mod certs;
pub mod cgroups;
pub mod changes;
pub mod cluster;
pub mod console;
pub mod crowd;
mod dialled;
pub mod docker_archive;
pub mod issuing;
pub mod kube_suite;
pub mod load;
pub mod manifests;
pub mod mirror;
pub mod netns;
mod outages;
pub mod peers;
pub mod process;
pub mod profile;
pub mod report;
pub mod sandbox;
pub mod scale;
pub mod suite;
pub mod tools;
pub mod topology;
pub mod verbs;
pub mod world;
