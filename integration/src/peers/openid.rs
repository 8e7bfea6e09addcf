//! A real OpenID provider (zitadel/oidc) signs tokens and changes its keys; pod b takes them for as long as it should.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Stage, Test};
use crate::{
    mirror,
    process::{Process, eventually},
    topology::{MESHED, Node},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "peers::openid_tokens_open_a_service",
        about: "found by discovery: a good one, and what it says; none, garbage, and the wrong audience",
        work: tokens,
    },
    Test {
        name: "peers::openid_keys_rotate_without_a_failed_request",
        about: "announced, used, retired: the newest token is never refused, the oldest in the end",
        work: rotation,
    },
    Test {
        name: "peers::openid_issuer_is_away_and_back",
        about: "away, and answering garbage: its tokens are taken, and agents say what is wrong; back with other keys",
        work: away,
    },
];

const PORT: u16 = 9998;
const SECOND: Duration = Duration::from_secs(1);
/// How old keys get here.
const REFRESH: Duration = Duration::from_secs(2);

/// What b answers once a token was read and found good. Before the policy is in force, it answers by 200 as well.
const TAKEN: &[&str] = &["HTTP/1.1 200", "x-user: sid1"];

/// The provider on the first node.
struct Provider {
    issuer: String,
    _process: Process,
}

fn start_provider(stage: &Stage<'_>, world: &World) -> Result<Provider> {
    let node = provider_node(world);
    let (listen, issuer) = (format!("{}:{PORT}", node.v4), format!("http://{}:{PORT}", node.v4));
    let mut command = node.netns.command(stage.kit.openid_programs.path("openid-issuer"));
    command.args(["-listen", &listen, "-issuer", &issuer]);
    let mut process = Process::start(&mut command, &world.folder.join("openid.log"))?;
    process.wait_for("serving on", SECOND * 20)?;
    Ok(Provider { issuer, _process: process })
}

fn provider_node(world: &World) -> &Node {
    &world.topology.nodes[0]
}

impl Provider {
    fn post(&self, world: &World, path: &str, arguments: &[&str]) -> Result<String> {
        let mut curl = provider_node(world).netns.command("curl");
        curl.args(["-sSf", "-m", "5", "-X", "POST"]).args(arguments).arg(format!("{}{path}", self.issuer));
        crate::process::run(&mut curl, SECOND * 10)?.ok()
    }

    /// A fresh token.
    fn token(&self, world: &World) -> Result<String> {
        let arguments =
            ["-u", "sid1:verysecret", "-d", "grant_type=client_credentials", "-d", "scope=openid"];
        let told: Value = serde_json::from_str(&self.post(world, "/oauth/token", &arguments)?)?;
        Ok(told["access_token"].as_str().with_context(|| format!("{told}"))?.to_owned())
    }
}

/// Agents that fetch keys often, and pod b for holders of tokens for that audience.
fn start(world: &mut World, issuer: &str, audience: &str) -> Result<()> {
    for agent in &mut world.agents {
        agent.add_flags(&["--jwks-refresh", "2s"]);
    }
    world.start_agents()?;
    demand(world, issuer, audience)
}

fn demand(world: &World, issuer: &str, audience: &str) -> Result<()> {
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: users, namespace: {MESHED}}}\n\
         spec:\n  selector: {{matchLabels: {{app: b}}}}\n  jwtRules:\n  - issuer: {issuer}\n    audiences: [{audience}]\n    \
         outputClaimToHeaders: [{{header: x-user, claim: sub}}]\n---\n\
         apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: users, namespace: {MESHED}}}\n\
         spec:\n  selector: {{matchLabels: {{app: b}}}}\n  rules:\n  \
         - from: [{{source: {{requestPrincipals: ['{issuer}/sid1']}}}}]\n"
    );
    world.manifests.write("users.yaml", &text)
}

/// What b answers a with this token.
fn get(world: &World, token: Option<&str>) -> Result<String> {
    let url = format!("http://{}:{}/cart", world.pod("b").v4, mirror::PORT);
    let bearer = token.map(|token| format!("authorization: Bearer {token}"));
    let mut arguments = vec!["-i", "-H", "x-user: mallory"];
    arguments.extend(bearer.iter().flat_map(|bearer| ["-H", bearer]));
    arguments.push(&url);
    world.curl("a", &arguments)?.ok()
}

fn must_say(world: &World, token: Option<&str>, limit: Duration, words: &[&str]) -> Result<String> {
    eventually(limit, || {
        let told = get(world, token)?;
        let missing = words.iter().find(|word| !told.contains(**word));
        ensure!(missing.is_none(), "no {missing:?} in {told}");
        Ok(told)
    })
}

fn tokens(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let provider = start_provider(stage, world)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    start(world, &provider.issuer, "sid1")?;
    let token = provider.token(world)?;
    let told = must_say(world, Some(&token), SECOND * 10, TAKEN)?;
    ensure!(!told.contains("mallory") && !told.to_lowercase().contains("authorization"), "{told}");
    must_say(world, None, SECOND, &["HTTP/1.1 403", "RBAC: access denied"])?;
    let garbled = must_say(world, Some("x"), SECOND, &["HTTP/1.1 401", "Jwt is not in the form of"])?;
    ensure!(garbled.to_lowercase().contains("www-authenticate: bearer realm="), "{garbled}");
    let (rest, signature) = token.rsplit_once('.').context("three parts")?;
    let forged = format!("{rest}.{}", signature.chars().rev().collect::<String>());
    must_say(world, Some(&forged), SECOND, &["HTTP/1.1 401", "Jwt verification fails"])?;
    demand(world, &provider.issuer, "other")?;
    must_say(world, Some(&token), SECOND * 5, &["HTTP/1.1 403", "Audiences in Jwt are not allowed"])?;
    let issuers = world.agents[1].status()?["issuers"].clone();
    ensure!(issuers[0]["keys"] == 1 && issuers[0]["error"] == "", "{issuers:#}");
    let elsewhere = world.agents[0].status()?["issuers"].clone();
    ensure!(elsewhere == Value::Array(Vec::new()), "no pod of node 1 takes tokens: {elsewhere:#}");
    Ok(())
}

fn rotation(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let provider = start_provider(stage, world)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    start(world, &provider.issuer, "sid1")?;
    let first = provider.token(world)?;
    must_say(world, Some(&first), SECOND * 10, TAKEN)?;
    let mut requests = 0;
    for _ in 0..3 {
        provider.post(world, "/keys/announce", &[])?;
        let announced = std::time::Instant::now();
        let mut newest = provider.token(world)?;
        let mut used = false;
        // All agents have the new key before it is used.
        while announced.elapsed() < REFRESH * 4 {
            if !used && announced.elapsed() > REFRESH * 2 {
                provider.post(world, "/keys/use", &[])?;
                newest = provider.token(world)?;
                used = true;
            }
            must_say(world, Some(&newest), Duration::ZERO, &["HTTP/1.1 200"])?;
            requests += 1;
        }
        provider.post(world, "/keys/retire", &[])?;
    }
    must_say(world, Some(&first), SECOND * 10, &["HTTP/1.1 401", "Jwks doesn't have key to match"])?;
    must_say(world, Some(&provider.token(world)?), Duration::ZERO, &["HTTP/1.1 200"])?;
    world.notes.push(format!("three rotations, {requests} requests, none refused"));
    Ok(())
}

const GARBAGE: &str = "
import http.server, sys
class Garbage(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'<html>maintenance</html>')
server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Garbage)
print('ready', flush=True)
server.serve_forever()
";

fn away(stage: &Stage<'_>, world: &mut World) -> Result<()> {
    let provider = start_provider(stage, world)?;
    let _mirror = mirror::start(world.pod("b"), &world.folder)?;
    start(world, &provider.issuer, "sid1")?;
    let token = provider.token(world)?;
    must_say(world, Some(&token), SECOND * 10, TAKEN)?;
    let mark = world.agents[1].mark();
    drop(provider);
    let troubled = |words: &str| {
        eventually(SECOND * 30, || {
            let issuers = world.agents[1].status()?["issuers"].clone();
            let error = issuers[0]["error"].as_str().unwrap_or_default();
            ensure!(error.contains(words), "{issuers:#}");
            must_say(world, Some(&token), Duration::ZERO, &["HTTP/1.1 200"])?;
            Ok(())
        })
    };
    troubled("cannot reach")?;
    let line = ["cannot be had", "those it had stay in use"];
    eventually(SECOND * 15, || world.agents[1].wait_log(mark, &line))?;
    let found = world.agents[1].run(&["analyze", "--fail-on", "never"])?.ok()?;
    ensure!(found.contains("issuer-keys") && found.contains("its keys cannot be fetched"), "{found}");

    let script = world.folder.join("garbage.py");
    fs::write(&script, GARBAGE).context("the script")?;
    let node = provider_node(world);
    let mut python = node.netns.command("python3");
    python.arg(&script).args([node.v4.to_string(), PORT.to_string()]);
    let mut garbage = Process::start(&mut python, &world.folder.join("garbage.log"))?;
    garbage.wait_for("ready", SECOND * 10)?;
    troubled("is no OpenID configuration")?;
    drop(garbage);

    // Back, with keys that nobody has heard of.
    let provider = start_provider(stage, world)?;
    let fresh = provider.token(world)?;
    must_say(world, Some(&fresh), SECOND * 20, &["HTTP/1.1 200"])?;
    world.agents[1].wait_log(mark, &["the issuer's keys can be had again"])?;
    must_say(world, Some(&token), SECOND, &["HTTP/1.1 401"])?;
    let status = world.agents[1].status()?;
    ensure!(status["issuers"][0]["error"] == "", "{status:#}");
    Ok(())
}
