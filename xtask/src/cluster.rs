//! `cargo xtask cluster`: a real Kubernetes on this machine to work with.

use std::process::ExitCode;

use ambit_integration::{cluster::ApiServer, console::Console, sandbox};
use anyhow::Result;

use crate::kube;

#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<ExitCode> {
    sandbox::supervised(kube::programs, |sandbox, programs| {
        let console = Console::new(false);
        let api = ApiServer::start(sandbox, &programs, "api")?;
        console.good("up");
        console.line(api.kubectl(&["get", "ns,sa", "-A"])?);
        api.kubectl(&["create", "sa", "x"])?;
        api.apply(r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"nodeName":"a","serviceAccountName":"x","containers":[{"name":"c","image":"x"}]}}"#)?;
        console.line(api.token("default", "x", "istio-ca", Some("p"))?);
        Ok(())
    })
}
