//! Open Policy Agent decides, by Rego, who may come to pod b: by Envoy's gRPC, and by HTTP.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Test};
use crate::{
    agent::IN_FORCE,
    load::ports,
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "peers::opa_decides_about_connections",
    about: "by a Rego policy over the client's identity; another policy, and other clients come in",
    work: connections,
}];

const PORT: u16 = 9191;
const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

/// Lets in connections of one account to a port.
fn rego(account: &str) -> String {
    format!(
        "package envoy.authz\n\ndefault allow := false\n\nallow if {{\n\t\
         input.attributes.source.principal == \"spiffe://cluster.local/ns/{MESHED}/sa/{account}\"\n\t\
         input.attributes.destination.principal == \"spiffe://cluster.local/ns/{MESHED}/sa/b\"\n\t\
         input.attributes.destination.address.socketAddress.portValue == {port}\n\t\
         not input.attributes.request\n}}\n",
        port = ports::WHOAMI
    )
}

/// OPA behind Envoy's API in pod d, with this policy.
fn serve(stage: &Stage<'_>, world: &World, policy: &str) -> Result<Process> {
    let file = world.folder.join("policy.rego");
    fs::write(&file, policy).context("the policy")?;
    let mut command = world.pod("d").netns.command(program(stage, "opa-ext-authz"));
    command.args(["-listen", &format!("0.0.0.0:{PORT}"), "-policy"]).arg(&file);
    let mut opa = Process::start(&mut command, &world.folder.join("opa.log"))?;
    opa.wait_for("serving on", SECOND * 20)?;
    Ok(opa)
}

fn program(stage: &Stage<'_>, name: &str) -> PathBuf {
    stage.kit.opa_programs.path(name)
}

fn connections(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let opa = serve(stage, world, &rego("a"))?;
    let place = world.pod("d").v4;
    let providers =
        format!("[{{name: opa, envoyExtAuthzGrpc: {{service: {place}, port: {PORT}, timeout: 2s}}}}]");
    for agent in &mut world.agents {
        agent.add_flags(&["--extension-providers", &providers]);
    }
    world.start_agents()?;
    world.manifests.write(
        "custom.yaml",
        &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: opa, namespace: {MESHED}}}\n\
             spec:\n  selector: {{matchLabels: {{app: b}}}}\n  action: CUSTOM\n  provider: {{name: opa}}\n  rules: [{{}}]\n"
        ),
    )?;
    let decided = |[a, e, c]: [bool; 3]| {
        eventually(IN_FORCE + SECOND, || {
            for (pod, expected) in [("a", a), ("e", e), ("c", c)] {
                match expected {
                    true => world.must_reach(pod, "b")?,
                    false => world.must_not_reach(pod, "b").map(drop)?,
                }
            }
            Ok(())
        })
    };
    decided([true, false, false])?;
    // Away, and back with another opinion.
    drop(opa);
    decided([false; 3])?;
    let _opa = serve(stage, world, &rego("e"))?;
    decided([false, true, false])?;
    let metrics = world.agents[1].metrics()?;
    let allowed = metrics.sum("ambit_ext_authz_checks_total", &[("result", "allowed")]);
    ensure!(allowed > 0.0, "no check has let anybody in");
    Ok(())
}
