//! What the program `ambit-integration` can be told to do; one file for each verb.
//!
//! Everything a verb needs is given to it, built: building and installing is left to `cargo xtask`.

mod bench;
mod clean;
mod cluster;
mod demo;
mod image;
mod kernel;
mod profile;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::tools::{self, Tool};

/// A verb and its arguments.
#[derive(Subcommand)]
pub enum Verb {
    /// The end-to-end tests.
    Test(test::Args),
    /// The tests on a real Kubernetes.
    TestKube(test::KubeArgs),
    /// The tests against a real SPIRE, a real istiod, Open Policy Agent, an OpenID provider and promtool.
    TestPeers(test::PeersArgs),
    /// Lists the tests of a suite.
    List {
        /// Which.
        suite: test::Suite,
    },
    /// The end-to-end tests on another kernel, under emulation.
    TestKernel(kernel::Args),
    /// The demo on nodes and pods that are namespaces.
    Demo(demo::Args),
    /// The demo on a real Kubernetes.
    DemoKube(demo::KubeArgs),
    /// Data paths in turn under load: plaintext, ambit, proxies.
    Bench(bench::Args),
    /// The agent in a big cluster.
    BenchKube(bench::KubeArgs),
    /// Where the agents' time goes under a load.
    Profile(profile::Args),
    /// A real Kubernetes to work with.
    Cluster(cluster::Args),
    /// Removes what runs have left.
    Clean,
    /// Writes the container image.
    Image(image::Args),
    /// A client or server of the tests, run inside a pod's namespace.
    #[command(subcommand)]
    Tool(Tool),
}

impl Verb {
    /// Does it.
    pub fn run(self) -> Result<ExitCode> {
        let done = match self {
            Self::Test(args) => return test::run(&args),
            Self::TestKube(args) => return test::run_kube(&args),
            Self::TestPeers(args) => return test::run_peers(&args),
            Self::TestKernel(args) => return kernel::run(&args),
            Self::Demo(args) => return demo::run(&args),
            Self::DemoKube(args) => return demo::run_kube(&args),
            Self::Bench(args) => return bench::run(&args),
            Self::BenchKube(args) => return bench::run_kube(&args),
            Self::Profile(args) => return profile::run(&args),
            Self::Cluster(args) => return cluster::run(&args),
            Self::List { suite } => {
                test::list(suite);
                Ok(())
            }
            Self::Clean => clean::run(),
            Self::Image(args) => image::run(&args),
            Self::Tool(tool) => tools::run(&tool),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}
