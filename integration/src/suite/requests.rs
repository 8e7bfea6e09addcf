//! Requests that policy judges one by one, between real clients and servers: nginx, curl, h2load, gRPC, WebSocket, TLS of the
//! applications' own; through the tunnel, and in plaintext.

mod hostile;
mod unary;

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{SECOND, Test, own};
use crate::{
    agent::IN_FORCE,
    process::{self, Process, eventually},
    topology::MESHED,
    world::World,
};

pub(super) use self::hostile::TESTS as HOSTILE;

pub(super) const TESTS: &[Test] = &[
    own(
        "requests::curl_sees_what_it_would_see",
        "nginx by HTTP/1.0, 1.1 and 2, with and without ambit in the way: the same answers",
        &[],
        curl,
    ),
    own(
        "requests::each_is_judged_by_method_path_and_header",
        "through the tunnel and in plaintext; a change holds from the next request of a connection on",
        &[],
        judged,
    ),
    own(
        "requests::grpc_websocket_and_load",
        "unary, both ways, big; refused with its own code; h2load and wrk without an error",
        &[],
        protocols,
    ),
    own(
        "requests::a_unary_call_is_one_packet_each_way",
        "a hundred gRPC calls and more: no packet to the application beyond one for each, as without ambit",
        &[],
        unary::one_packet_each_way,
    ),
    own(
        "requests::what_is_not_http_is_left_alone_or_refused",
        "a server that speaks first, TLS of the application's own by the name that it asks for",
        &[],
        others,
    ),
];

const FILE: &str = "requests.yaml";
/// Debian's, which has its libraries for it.
const PYTHON: &str = "/usr/bin/python3";
/// A public key that nothing of these tests is signed with.
const KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const LIMIT: Duration = Duration::from_secs(60);

fn policies(specs: &[&str]) -> String {
    let policy = |(at, spec): (usize, &&str)| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: requests-{at}\n  namespace: {MESHED}\n\
             spec: {{selector: {{matchLabels: {{app: b}}}}, {spec}}}\n"
        )
    };
    specs.iter().enumerate().map(policy).collect::<Vec<_>>().join("---\n")
}

const NO_ADMIN: &str = "action: DENY, rules: [{to: [{operation: {paths: ['/admin*', '/test.Echo/Admin']}}]}]";

/// nginx in a pod: HTTP/1 on port 8090, HTTP/2 with prior knowledge on 8091.
fn nginx(world: &World, pod: &str) -> Result<Process> {
    let folder = world.folder.join(format!("nginx-{pod}"));
    let files = folder.join("files");
    fs::create_dir_all(files.join("admin"))?;
    fs::write(files.join("a.txt"), "what stands in a file\n")?;
    fs::write(files.join("big"), vec![b'x'; 5_000_000])?;
    fs::write(files.join("admin/x"), "secret\n")?;
    let ip = world.pod(pod).v4;
    let at = folder.display();
    let server = "location / { } location /echo { return 200 \"$request_method $http_x_odd $http_host\\n\"; } \
                  location /moved { return 301 /a.txt; } location /nothing { return 204; } \
                  location /taken { proxy_pass http://127.0.0.1:8092; }";
    let config = format!(
        "daemon off; worker_processes 1; user root; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; root {at}/files; client_body_temp_path {at}/body; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; keepalive_requests 1000000; client_header_timeout 600s; add_header X-Case Kept always;\n\
         server {{ listen {ip}:8090; {server} }} server {{ listen {ip}:8091 http2; {server} }}\n\
         server {{ listen 127.0.0.1:8092; location / {{ return 200 \"taken\\n\"; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let mut command = world.pod(pod).netns.command("/usr/sbin/nginx");
    command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(&folder).arg("-c").arg(&file);
    let nginx = Process::start(&mut command, &folder.join("log"))?;
    eventually(10 * SECOND, || {
        let probe = world
            .pod(pod)
            .netns
            .command("curl")
            .args(["-sf", &format!("http://{ip}:8090/a.txt")])
            .output()?;
        ensure!(probe.status.success(), "nginx does not answer");
        Ok(())
    })?;
    Ok(nginx)
}

/// What curl prints, without what is another's each time.
fn seen(world: &World, pod: &str, server: &str, arguments: &[&str]) -> Result<String> {
    let ip = world.pod(server).v4.to_string();
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("IP", &ip)).collect();
    let mut command = world.pod(pod).netns.command("curl");
    command.args(["-sS", "-i", "--max-time", "20"]).args(&arguments);
    let finished = process::run(&mut command, LIMIT)?;
    let end = if finished.status.success() { String::new() } else { format!("\n{}", finished.status) };
    let told = format!("{}{}{end}", finished.stdout, finished.stderr).replace(&ip, "IP");
    let steady = |line: &&str| {
        let line = line.to_ascii_lowercase();
        !["date:", "etag:", "last-modified:"].iter().any(|name| line.starts_with(name))
    };
    Ok(told.lines().filter(steady).collect::<Vec<_>>().join("\n"))
}

fn curl(world: &mut World) -> Result<()> {
    let _servers = [nginx(world, "b")?, nginx(world, "d")?];
    world.manifests.write(FILE, &policies(&[NO_ADMIN]))?;
    in_force(world)?;
    let body = world.folder.join("body");
    fs::write(&body, vec![b'y'; 300_000])?;
    let upload = format!("@{}", body.display());
    let [file, big] = ["http://IP:8090/a.txt", "http://IP:8090/big"];
    let table: Vec<Vec<String>> = [
        vec![file],
        vec!["-I", file],
        vec!["--http1.0", file],
        vec![file, file, "http://IP:8090/nothing", file],
        vec!["-r", "5-9", file],
        vec!["-H", "x-oDD: b c", "-H", "Host: Shop:1", "http://IP:8090/echo?x=%2F"],
        vec!["-X", "OPTIONS", "http://IP:8090/echo"],
        vec!["-X", "FROB", "http://IP:8090/echo"],
        vec!["-d", "a=b", "http://IP:8090/echo"],
        vec!["--data-binary", &upload, "http://IP:8090/echo"],
        vec!["-H", "Expect: 100-continue", "--data-binary", &upload, "http://IP:8090/echo"],
        vec!["-H", "Transfer-Encoding: chunked", "--data-binary", &upload, "http://IP:8090/echo"],
        vec!["-T", &body.to_string_lossy(), "http://IP:8090/put"],
        vec!["-L", "http://IP:8090/moved"],
        vec!["http://IP:8090/missing"],
        vec!["-H", "Connection: close", file],
        vec!["--http2", file],
        vec!["--http2-prior-knowledge", "http://IP:8091/a.txt", "http://IP:8091/echo?x"],
        // Not to what answers before it has all: curl may wait for ever then, also without ambit.
        vec!["--http2-prior-knowledge", "--data-binary", &upload, "http://IP:8091/taken"],
        vec!["--http2-prior-knowledge", "-I", "http://IP:8091/a.txt"],
        vec![big],
        vec!["--http2-prior-knowledge", "http://IP:8091/big"],
    ]
    .into_iter()
    .map(|row| row.into_iter().map(str::to_owned).collect())
    .collect();
    for row in &table {
        let row: Vec<&str> = row.iter().map(String::as_str).collect();
        let plain = seen(world, "c", "d", &row)?;
        for (client, what) in [("a", "through the tunnel"), ("c", "in plaintext")] {
            let meshed = seen(world, client, "b", &row)?;
            ensure!(
                meshed == plain,
                "curl {row:?} {what} saw\n{:.600}\nand without ambit\n{:.600}",
                meshed,
                plain
            );
        }
    }
    world.notes.push(format!("{} ways to ask", table.len()));
    Ok(())
}

/// Waits until requests to b are judged.
fn in_force(world: &World) -> Result<()> {
    eventually(IN_FORCE + SECOND, || {
        for pod in ["a", "c"] {
            let denied = seen(world, pod, "b", &["http://IP:8090/admin/x"])?;
            ensure!(denied.contains("403 Forbidden") && denied.ends_with("RBAC: access denied"), "{denied}");
        }
        Ok(())
    })
}

fn status(world: &World, pod: &str, arguments: &[&str]) -> Result<String> {
    let seen = seen(world, pod, "b", arguments)?;
    Ok(seen.split_whitespace().nth(1).unwrap_or_default().to_owned())
}

fn judged(world: &mut World) -> Result<()> {
    let _server = nginx(world, "b")?;
    let rules = "action: ALLOW, rules: [\
                 {to: [{operation: {methods: [GET], paths: ['/a.txt']}}]}, \
                 {from: [{source: {serviceAccounts: [a]}}], to: [{operation: {methods: [POST], paths: ['/e*', '/{*}']}}]}, \
                 {to: [{operation: {hosts: ['shop.example']}}], when: [{key: 'request.headers[x-odd]', values: ['let me*']}]}]";
    world.manifests.write(FILE, &policies(&[rules, NO_ADMIN]))?;
    in_force(world)?;
    let mark = world.agents[1].mark();
    let special = ["-H", "Host: shop.example", "-H", "X-Odd: let me in", "http://IP:8090/echo"];
    for (arguments, tunnel, plain) in [
        (&["http://IP:8090/a.txt"][..], "200", "200"),
        (&["http://IP:8090/x/..//a.txt"], "403", "403"),
        (&["http://IP:8090/x/../%61.txt", "--path-as-is"], "200", "200"),
        (&["http://IP:8090/echo"], "403", "403"),
        (&["-d", "x", "http://IP:8090/echo"], "200", "403"),
        (&["-d", "x", "http://IP:8090/a/b"], "403", "403"),
        (&special, "200", "200"),
        (&["-X", "get", "http://IP:8090/a.txt"], "403", "403"),
        (&["--http2-prior-knowledge", "http://IP:8091/a.txt"], "200", "200"),
        (&["--http2-prior-knowledge", "http://IP:8091/echo"], "403", "403"),
    ] {
        for (pod, expected) in [("a", tunnel), ("c", plain)] {
            let got = status(world, pod, arguments)?;
            ensure!(got == expected, "curl {arguments:?} from {pod}: {got}, not {expected}");
        }
    }
    world.agents[1].wait_log(mark, &["access", "policy_denied", "/echo", "GET"])?;
    told_where(world)?;
    // One connection under policies that change.
    let mut client = world.pod("a").netns.command(PYTHON);
    client.arg(clients(world)?).args(["keep-alive", &world.pod("b").v4.to_string()]);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut input, output) =
        (client.stdin.take().context("stdin")?, client.stdout.take().context("stdout")?);
    let mut output = std::io::BufRead::lines(std::io::BufReader::new(output));
    let mut ask = |path: &str| -> Result<Value> {
        writeln!(input, "{path}")?;
        Ok(serde_json::from_str(&output.next().context("the client has ended")??)?)
    };
    let is = |saw: &Value, status: u16| *saw == json!({"status": status, "same": true});
    let saw = [ask("/a.txt")?, ask("/echo")?, ask("/a.txt")?];
    ensure!(is(&saw[0], 200) && is(&saw[1], 403) && is(&saw[2], 200), "{saw:?}");
    world
        .manifests
        .write(FILE, &policies(&["action: ALLOW, rules: [{to: [{operation: {paths: ['/echo']}}]}]"]))?;
    eventually(IN_FORCE + SECOND, || {
        let saw = ask("/a.txt")?;
        ensure!(is(&saw, 403), "{saw}");
        Ok(())
    })?;
    let saw = ask("/echo")?;
    ensure!(is(&saw, 200), "{saw}");
    drop(input);
    client.wait()?;
    Ok(())
}

/// Operators are told on which ports requests are read, and for whom.
fn told_where(world: &World) -> Result<()> {
    let read = |told: &Value, ports: &str, reader: &str| {
        let ports = told[ports].as_array().into_iter().flatten();
        let readers: Vec<&str> = ports.filter_map(|port| port[reader].as_str()).collect();
        readers.iter().any(|reader| reader.starts_with(&format!("AuthorizationPolicy {MESHED}/requests-")))
    };
    let told = world.agents[1].ask(&["readiness", "--namespace", MESHED])?;
    let mut workloads = told["destinations"].as_array().into_iter().flatten();
    let b = workloads.find(|workload| workload["workload"] == "b").context("readiness has no b")?;
    ensure!(read(b, "ports", "readFor"), "readiness: {b:#}");
    let told = world.agents[1].ask(&["check", &format!("{MESHED}/b")])?;
    ensure!(read(&told["groups"][0], "protocols", "readFor"), "check: {told:#}");
    Ok(())
}

fn clients(world: &World) -> Result<std::path::PathBuf> {
    let file = world.folder.join("clients.py");
    fs::write(&file, include_str!("requests/clients.py"))?;
    Ok(file)
}

/// What a client program told, one object after another.
fn client(world: &World, pod: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command = world.pod(pod).netns.command(PYTHON);
    command.arg(clients(world)?).args(arguments);
    let text = process::run(&mut command, LIMIT)?.ok()?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn servers(world: &World) -> Result<Process> {
    let folder = &world.folder;
    let file = folder.join("servers.py");
    fs::write(&file, include_str!("requests/servers.py"))?;
    let [certificate, key] = ["server.crt", "server.key"].map(|name| folder.join(name));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-subj", "/CN=server", "-days", "1", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    process::must(&mut openssl)?;
    let mut command = world.pod("b").netns.command(PYTHON);
    command.arg(&file).arg(world.pod("b").v4.to_string()).arg(&certificate).arg(&key);
    let mut servers = Process::start(&mut command, &folder.join("servers.log"))?;
    servers.wait_for("ready", 20 * SECOND)?;
    Ok(servers)
}

fn protocols(world: &mut World) -> Result<()> {
    let _servers = (nginx(world, "b")?, servers(world)?);
    world.manifests.write(FILE, &policies(&[NO_ADMIN]))?;
    in_force(world)?;
    let ip = world.pod("b").v4.to_string();
    for pod in ["a", "c"] {
        let saw = client(world, pod, &["grpc", &ip])?;
        let expected = [
            json!({"unary": "HELLO"}),
            json!({"denied": "PERMISSION_DENIED: RBAC: access denied"}),
            json!({"both": ["A", "B"], "trailers": "1"}),
            json!({"big": 3_000_000}),
        ];
        ensure!(saw == expected, "gRPC from {pod}: {saw:?}");
        let saw = client(world, pod, &["websocket", &ip])?;
        let expected = [json!({"echo": "hello"}), json!({"big": 500_000}), json!({"denied": 403})];
        ensure!(saw == expected, "WebSocket from {pod}: {saw:?}");
        let mut load = world.pod(pod).netns.command("h2load");
        load.args(["-n", "3000", "-c", "4", "-m", "10", &format!("http://{ip}:8091/a.txt")]);
        let told = process::run(&mut load, LIMIT)?.ok()?;
        ensure!(told.contains("3000 succeeded, 0 failed, 0 errored"), "{told}");
    }
    let mut wrk = world.pod("a").netns.command("wrk");
    wrk.args(["-t", "1", "-c", "8", "-d", "2", &format!("http://{ip}:8090/a.txt")]);
    let told = process::run(&mut wrk, LIMIT)?.ok()?;
    ensure!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
    Ok(())
}

fn others(world: &mut World) -> Result<()> {
    let _servers = (nginx(world, "b")?, servers(world)?);
    let ip = world.pod("b").v4.to_string();
    // Whoever has rules for requests refuses what has none.
    world.manifests.write(FILE, &policies(&[NO_ADMIN]))?;
    in_force(world)?;
    for pod in ["a", "c"] {
        let saw = client(world, pod, &["greeting", &ip])?;
        ensure!(!saw[0]["greeting"].as_str().unwrap_or_default().contains("220"), "{pod}: {saw:?}");
        let saw = client(world, pod, &["tls", &ip, "shop.example"])?;
        ensure!(saw[0]["got"] != "over TLS\n", "{pod}: {saw:?}");
    }
    // Tokens are of requests: what has none does not mind.
    let tokens = format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata:\n  name: requests\n  namespace: {MESHED}\nspec:\n  \
         jwtRules:\n  - issuer: https://issuer.example\n    jwks: '{{\"keys\":[{{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"{KEY}\"}}]}}'\n"
    );
    let names = "action: DENY, rules: [{to: [{operation: {ports: ['8095']}}], when: [{key: connection.sni, notValues: [shop.example]}]}]";
    world.manifests.write(FILE, &format!("{tokens}---\n{}", policies(&[names])))?;
    eventually(IN_FORCE + SECOND, || {
        for pod in ["a", "c"] {
            let saw = client(world, pod, &["greeting", &ip])?;
            ensure!(saw == [json!({"greeting": "220 I speak first\r\n"})], "{pod}: {saw:?}");
            let saw = client(world, pod, &["tls", &ip, "shop.example", "other.example"])?;
            ensure!(saw[0]["got"] == "over TLS\n" && saw[1]["got"] != "over TLS\n", "{pod}: {saw:?}");
            let bad = status(world, pod, &["-H", "Authorization: Bearer x", "http://IP:8090/a.txt"])?;
            ensure!(bad == "401", "{pod}: {bad}");
        }
        Ok(())
    })
}
