//! The policy guide (`docs/policy-guide.md`): its policies, as they stand there, and the requests that it says they are about. Its
//! `web` is pod a, `cart` pod b, and `stock` pod e.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::{SECOND, Test, unstarted};
use crate::{
    agent::IN_FORCE,
    load::{self, ports},
    process::{self, Process, eventually},
    world::World,
};

pub(super) const TESTS: &[Test] = &[
    unstarted(
        "guide::from_nobody_to_exactly_these_requests",
        "deny-all, a service account, paths and methods, and a compromised service shut out",
        &[],
        requests,
    ),
    unstarted(
        "guide::tokens_roles_and_an_external_provider",
        "customers with and without a role; a provider asked about one kind of request, there and away",
        &[],
        others,
    ),
];

const GUIDE: &str = "../docs/policy-guide.md";
const CHECKS: u16 = 9191;

/// The guide's objects by name, for the pods of the world.
struct Guide(BTreeMap<String, String>);

impl Guide {
    fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GUIDE);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let names = [
            ("app: web", "app: a"),
            ("app: cart", "app: b"),
            ("app: stock", "app: e"),
            ("[web]", "[a]"),
            ("[cart]", "[b]"),
            ("[shop/cart]", "[shop/b]"),
        ];
        let text = names.into_iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours));
        let mut objects = BTreeMap::new();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            for document in serde_yaml_ng::Deserializer::from_str(block) {
                let object = Value::deserialize(document)?;
                let name = object["metadata"]["name"].as_str().context("an object without a name")?;
                objects.insert(name.to_owned(), object.to_string());
            }
        }
        Ok(Self(objects))
    }

    fn apply(&self, world: &World, name: &str) -> Result<()> {
        self.apply_with(world, name, str::to_owned)
    }

    fn apply_with(&self, world: &World, name: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let text = self.0.get(name).with_context(|| format!("the guide has no {name}"))?;
        world.manifests.write(&format!("guide-{name}.json"), &change(text))
    }
}

/// The status that a request of `from` to port 8080 of `to` is answered with; 0 where the connection is refused or reset.
fn status(world: &World, from: &str, to: &str, method: &str, path: &str, token: &str) -> Result<u16> {
    let field = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let message = format!("{method} {path} HTTP/1.1\r\nHost: {to}:8080\r\n{field}Connection: close\r\n\r\n");
    let attempt = world.connect(from, (world.pod(to).v4, ports::HTTP), &["--send", &message])?;
    Ok(attempt.received.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0))
}

/// A server in a pod that has none.
fn server(world: &World, pod: &str, kind: &str, port: u16) -> Result<Process> {
    let mut command = load::tool(&world.pod(pod).netns)?;
    command.args([&format!("{kind}-server"), "--listen", &format!("[::]:{port}")]);
    let process = Process::start(&mut command, &world.folder.join(format!("{pod}-{kind}.log")))?;
    let local = (world.pod(pod).v4, port);
    eventually(5 * SECOND, || {
        let attempt = world.connect(pod, local, &["--send", "GET / HTTP/1.1\r\n\r\n"])?;
        ensure!(attempt.connected, "the server of {pod} does not listen: {attempt:?}");
        Ok(())
    })?;
    Ok(process)
}

/// Requests without a token, and what they are answered with.
fn expect(world: &World, requests: &[(&str, &str, &str, &str, u16)]) -> Result<()> {
    for (from, to, method, path, expected) in requests {
        let seen = status(world, from, to, method, path, "")?;
        ensure!(seen == *expected, "{method} {path} from {from} to {to}: {seen}, not {expected}");
    }
    Ok(())
}

fn soon(world: &World, requests: &[(&str, &str, &str, &str, u16)]) -> Result<()> {
    eventually(IN_FORCE + SECOND, || expect(world, requests))
}

fn requests(world: &mut World) -> Result<()> {
    world.start_agents()?;
    let guide = Guide::read()?;
    expect(world, &[("a", "b", "GET", "/", 200), ("b", "e", "GET", "/", 200)])?;
    guide.apply(world, "deny-all")?;
    soon(world, &[("a", "b", "GET", "/", 0), ("b", "e", "GET", "/items", 0)])?;
    guide.apply(world, "cart-takes-web")?;
    guide.apply(world, "monitoring-scrapes")?;
    soon(
        world,
        &[("a", "b", "GET", "/", 200), ("a", "b", "DELETE", "/anything", 200), ("e", "b", "GET", "/", 0)],
    )?;
    // Another port is not in the policy.
    world.must_not_reach("a", "b")?;
    guide.apply(world, "stock-takes-cart")?;
    soon(world, &[("b", "e", "GET", "/items/7", 200)])?;
    expect(
        world,
        &[
            ("b", "e", "GET", "/items", 200),
            ("b", "e", "GET", "/items?sort=name", 200),
            ("b", "e", "GET", "/x/../items/7", 200),
            ("b", "e", "POST", "/items/7/reserve", 200),
            ("b", "e", "GET", "/items/7/reserve", 403),
            ("b", "e", "POST", "/items/7", 403),
            ("b", "e", "GET", "/items/", 403),
            ("b", "e", "GET", "/itemsold", 403),
            ("b", "e", "GET", "/Items", 403),
            ("b", "e", "GET", "/items/../admin", 403),
            ("a", "e", "GET", "/items", 0),
        ],
    )?;

    // cart is compromised: a connection that it has is closed within a second, and both ends say why.
    let to = format!("{}:{}", world.pod("a").v4, ports::ECHO);
    world.manifests.remove("guide-deny-all.json")?;
    world.manifests.remove("guide-monitoring-scrapes.json")?;
    let _echo = server(world, "a", "echo", ports::ECHO)?;
    eventually(IN_FORCE + SECOND, || {
        let attempt = world.connect("b", (world.pod("a").v4, ports::ECHO), &["--send", "hello"])?;
        ensure!(attempt.received == "hello", "b does not reach a: {attempt:?}");
        Ok(())
    })?;
    let mut command = load::tool(&world.pod("b").netns)?;
    command.args(["ping-pong", "--to", &to, "--for-ms", "8000", "--rest-ms", "20"]);
    let mut open = Process::start(&mut command, &world.folder.join("compromised.log"))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(open.runs(), "it does not run: {}", open.output());
    let marks = [world.agents[0].mark(), world.agents[1].mark()];
    guide.apply(world, "quarantine")?;
    eventually(IN_FORCE + SECOND, || {
        ensure!(!open.runs(), "the compromised service talks on");
        Ok(())
    })?;
    soon(world, &[("b", "e", "GET", "/items/7", 0)])?;
    for (agent, mark) in world.agents.iter().zip(marks) {
        agent.wait_log(mark, &["access", "policy_denied", "ambit-system/quarantine"])?;
    }
    expect(world, &[("a", "b", "GET", "/", 200)])
}

fn others(world: &mut World) -> Result<()> {
    let mut command = load::tool(&world.pod("d").netns)?;
    command.args(["check-server", "--listen", &format!("[::]:{CHECKS}"), "--allow", "/ns/shop/sa/b"]);
    let mut provider = Process::start(&mut command, &world.folder.join("opa.log"))?;
    provider.wait_for("ready", 10 * SECOND)?;
    let opa = format!(
        "[{{name: opa, envoyExtAuthzGrpc: {{service: \"{}\", port: {CHECKS}, timeout: 1s}}}}]",
        world.pod("d").v4
    );
    for agent in &mut world.agents {
        agent.add_flags(&["--extension-providers", &opa]);
    }
    world.start_agents()?;
    let guide = Guide::read()?;

    let _web = server(world, "a", "http", ports::HTTP)?;
    let key = Key::new(&world.folder)?;
    let uri = "\"jwksUri\":\"https://login.example/keys\"";
    guide.apply_with(world, "customers", |text| {
        text.replace(uri, &format!("\"jwks\":{}", json!(key.set.to_string())))
    })?;
    guide.apply(world, "web-takes-customers")?;
    let customer = json!({ "iss": "https://login.example", "sub": "joe", "aud": "shop" });
    let with = |more: &Value| {
        let mut claims = customer.clone();
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        key.sign(&claims)
    };
    let (plain, admin) = (with(&json!({}))?, with(&json!({ "roles": ["user", "admin"] }))?);
    let expired = with(&json!({ "exp": 1_000_000_000 }))?;
    let soon = with(&json!({ "exp": unix_now() + 3_600 }))?;
    let elsewhere = with(&json!({ "aud": "bank" }))?;
    let forged = format!("{}x", &plain[..plain.len() - 1]);
    eventually(IN_FORCE + SECOND, || {
        for (token, path, expected) in [
            ("", "/", 403),
            ("", "/login", 200),
            (&*plain, "/", 200),
            (&*soon, "/cart", 200),
            (&*plain, "/admin", 403),
            (&*admin, "/admin/users", 200),
            (&*expired, "/", 401),
            (&*expired, "/login", 401),
            (&*forged, "/", 401),
            (&*elsewhere, "/", 403),
        ] {
            let seen = status(world, "e", "a", "GET", path, token)?;
            ensure!(seen == expected, "{path} with {token:?}: {seen}, not {expected}");
        }
        Ok(())
    })?;

    guide.apply(world, "stock-takes-cart")?;
    guide.apply(world, "stock-asks-opa")?;
    eventually(IN_FORCE + SECOND, || {
        expect(
            world,
            &[
                ("b", "e", "POST", "/items/7/reserve", 200),
                ("b", "e", "GET", "/items/7", 200),
                // The provider can only take away.
                ("b", "e", "GET", "/items/7/reserve", 403),
            ],
        )
    })?;
    drop(provider);
    let mark = world.agents[0].mark();
    eventually(5 * SECOND, || {
        expect(world, &[("b", "e", "POST", "/items/7/reserve", 403), ("b", "e", "GET", "/items/7", 200)])
    })?;
    world.agents[0].wait_log(mark, &["access::request", "provider_refused", "shop/stock-asks-opa"])?;
    Ok(())
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An issuer's key.
struct Key {
    file: String,
    /// The public half, as a JSON Web Key Set.
    set: Value,
}

impl Key {
    fn new(folder: &Path) -> Result<Self> {
        let file = folder.join("issuer.pem").display().to_string();
        let make = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", &file];
        process::run(Command::new("openssl").args(make), 30 * SECOND)?.ok()?;
        let modulus = process::run(
            Command::new("openssl").args(["rsa", "-in", &file, "-noout", "-modulus"]),
            30 * SECOND,
        )?
        .ok()?;
        let hex = modulus.trim().strip_prefix("Modulus=").context("openssl tells no modulus")?;
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16))
            .collect::<Result<_, _>>()?;
        let key = json!({ "kty": "RSA", "alg": "RS256", "use": "sig", "n": base64url(&bytes), "e": "AQAB" });
        Ok(Self { file, set: json!({ "keys": [key] }) })
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| base64url(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256" })), part(claims));
        let mut child = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign", &self.file])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut input = child.stdin.take().context("no standard input")?;
        std::io::Write::write_all(&mut input, signed.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "openssl does not sign");
        Ok(format!("{signed}.{}", base64url(&output.stdout)))
    }
}

/// Base64 for URLs, without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]));
        }
    }
    out
}
