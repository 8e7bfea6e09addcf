//! Open Policy Agent decides, by Rego, who may come to pod b: by Envoy's gRPC, and by HTTP.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, Test};
use crate::{
    agent::IN_FORCE,
    load::ports,
    mirror,
    process::{Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::opa_decides_about_connections",
        about: "by a Rego policy over the client's identity; another policy, and other clients come in",
        work: connections,
    },
    Test {
        name: "peers::opa_decides_about_requests",
        about: "by path, query and header of each; what its policy says goes to the application and to the client",
        work: requests,
    },
    Test {
        name: "peers::opa_decides_by_http",
        about: "OPA's own server, by its own Rego: method, path and header; 401 is the client's; away, and back",
        work: by_http,
    },
];

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

/// Agents that know OPA as a provider of this form, and a policy that has it asked about all that comes to b.
fn start(world: &mut World, form: &str, fields: &str) -> Result<()> {
    let place = world.pod("d").v4;
    let providers =
        format!("[{{name: opa, {form}: {{service: {place}, port: {PORT}, timeout: 2s{fields}}}}}]");
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
    )
}

fn connections(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let opa = serve(stage, world, &rego("a"))?;
    start(world, "envoyExtAuthzGrpc", "")?;
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
    let allowed = metrics.sum("ambit_ext_authz_checks_total", &["result=\"allowed\""]);
    ensure!(allowed > 0.0, "no check has let anybody in");
    Ok(())
}

/// Orders are for clerks, who are told to the application; others are told why not.
const ORDERS: &str = r#"package envoy.authz

default allow := {"allowed": false, "http_status": 402, "headers": {"x-why": "no clerk"}, "body": "pay first"}

allow := {
	"allowed": true,
	"headers": {"x-user": input.parsed_query.user[0]},
	"request_headers_to_remove": ["x-secret"],
	"response_headers_to_add": {"x-decided-by": "rego"},
} if {
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] == "orders"
	input.attributes.request.http.headers["x-role"] == "clerk"
}
"#;

fn requests(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let _opa = serve(stage, world, ORDERS)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    start(world, "envoyExtAuthzGrpc", "")?;
    let get = |role: &str, path: &str| {
        let url = format!("http://{}:{}{path}", world.pod("b").v4, mirror::PORT);
        world.curl("a", &["-i", "-H", role, "-H", "x-secret: s", "-H", "x-user: mallory", &url])?.ok()
    };
    must_say(
        || get("x-role: guest", "/orders/1?user=eve"),
        &["HTTP/1.1 402", "x-why: no clerk", "\r\n\r\npay first"],
    )?;
    let words = ["HTTP/1.1 200", "x-decided-by: rego", "/orders/1?user=eve\n", "x-user: eve"];
    must_say(|| get("x-role: clerk", "/orders/1?user=eve"), &words)?;
    let told = get("x-role: clerk", "/orders/1?user=eve")?;
    ensure!(!told.contains("x-secret") && !told.contains("mallory"), "{told}");
    must_say(|| get("x-role: clerk", "/users"), &["HTTP/1.1 402"])
}

/// OPA's server lets in whom this does; paths have its own API's before them.
const SERVER: &str = r#"package system.authz

default allow := false

allow if {
	input.method == "GET"
	input.path[2] == "orders"
	input.headers["X-Role"][0] == "clerk"
	input.headers["X-Asked-By"][0] == "ambit"
}
"#;

fn by_http(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let file = world.folder.join("server.rego");
    fs::write(&file, SERVER).context("the policy")?;
    let serve = |world: &World| {
        let mut command = world.pod("d").netns.command(program(stage, "opa"));
        command.args(["run", "--server", "--addr", &format!("0.0.0.0:{PORT}")]);
        command.args(["--authorization=basic", "--disable-telemetry"]).arg(&file);
        Process::start(&mut command, &world.folder.join("opa-server.log"))
    };
    let opa = serve(world)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    let fields = ", pathPrefix: /v1/data, includeRequestHeadersInCheck: [x-role], \
                  includeAdditionalHeadersInCheck: {x-asked-by: ambit}, statusOnError: 503";
    start(world, "envoyExtAuthzHttp", fields)?;
    let get = |role: &str, path: &str| {
        let url = format!("http://{}:{}{path}", world.pod("b").v4, mirror::PORT);
        world.curl("a", &["-i", "-H", role, &url])?.ok()
    };
    must_say(|| get("x-role: clerk", "/orders/1?all=1"), &["HTTP/1.1 200", "/orders/1?all=1\n"])?;
    must_say(|| get("x-role: guest", "/orders/1"), &["HTTP/1.1 401", "unauthorized"])?;
    must_say(|| get("x-role: clerk", "/users"), &["HTTP/1.1 401"])?;
    drop(opa);
    must_say(|| get("x-role: clerk", "/orders/1"), &["HTTP/1.1 503"])?;
    let _opa = serve(world)?;
    must_say(|| get("x-role: clerk", "/orders/1"), &["HTTP/1.1 200"])
}

fn must_say(get: impl Fn() -> Result<String>, words: &[&str]) -> Result<()> {
    eventually(SECOND * 10, || {
        let told = get()?;
        let missing = words.iter().find(|word| !told.contains(**word));
        ensure!(missing.is_none(), "no {missing:?} in {told}");
        Ok(())
    })
}
