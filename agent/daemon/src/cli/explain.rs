//! `ambit explain`: why connections are let in or refused, and what would change it.

mod text;

pub(super) use text::{origin, protocol};

use std::{fs, net::IpAddr, process::ExitCode};

use ambit_proto::policy::v1::{ExplainRequest, HttpHeader, HttpRequest};
use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};

use super::{output, policies::Source};
use crate::{config::Location, diagnosis};

/// The largest token that is read from a file.
const MAX_TOKEN: u64 = 64 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
SRC and DST are a pod (NAME or NAMESPACE/NAME), what makes pods (deploy/NAME or NAMESPACE/deploy/NAME), a service (svc/NAME or
NAME.NAMESPACE.svc), a service account (sa/NAME), an address, or a SPIFFE ID. Connections that are judged alike are told together.

With --manifests the question is answered from manifests, by the same code that decides on connections; a Deployment or whatever else
makes pods counts as a pod of its template. With --expect the exit code is 1 where a verdict is another one.

With --method, --path, --host, --header or --jwt it is about an HTTP request, judged step by step as on the way: its path is normalised,
a CUSTOM provider is named (and not asked: the verdict is that of a request which it lets in), the token is judged, and policies decide.
Signatures are checked against keys that stand in a RequestAuthentication; no keys are fetched, and the answer says so.

Examples:
  ambit explain shop/web stock/cart:8080
  ambit explain deploy/web svc/cart:80 -n shop
  ambit explain 192.0.2.7 shop/cart-0:8080
  ambit explain spiffe://cluster.local/ns/dev/sa/x shop/svc/cart:80 -o json
  ambit explain shop/web stock/cart:8080 --manifests ./manifests -R --expect allow
  ambit explain shop/web svc/cart:80 -n shop --method DELETE --path '/items/7?force=1' --header X-Team=web
  ambit explain shop/web svc/cart:80 -n shop --path /admin --jwt claims.json --expect allow
  ambit explain shop/web stock/cart:8080 --kubeconfig ~/.kube/config
  kubectl ambit explain deploy/web svc/cart:80 -n shop")]
pub(super) struct ExplainArgs {
    /// Who connects
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to; all ports that are known without one
    #[arg(value_name = "DST[:PORT]")]
    destination: String,
    /// The address that the client comes from, where it is not that of a pod
    #[arg(long, value_name = "IP")]
    source_ip: Option<IpAddr>,
    #[command(flatten)]
    request: RequestArgs,
    /// Fail unless every one of the connections is let in, or refused
    #[arg(long, value_enum, value_name = "VERDICT")]
    expect: Option<Verdict>,
    /// How to show it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    answers: Source,
}

/// An HTTP request.
#[derive(Debug, Args)]
#[command(next_help_heading = "An HTTP request on that connection")]
struct RequestArgs {
    /// Its method, in the case in which it is sent [default: GET, if any of these is given]
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Its path and query [default: /]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Its Host or :authority, with the port if the client sends it [default: the name of what is called]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A header field; may be given several times
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// A file with its token: a JWT, or a JSON object of claims, which then count as those of a good token of their issuer
    #[arg(long, value_name = "FILE")]
    jwt: Option<Location>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Allow,
    Deny,
}

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = ExplainRequest {
        source: args.source.clone(),
        destination: args.destination.clone(),
        namespace: args.answers.namespace().to_owned(),
        source_ip: args.source_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        request: args.request.read()?,
    };
    let answer = args.answers.ask(
        async |mut agent| agent.explain(request.clone()).await,
        |world| diagnosis::explain(world, &request),
    )?;
    output::emit(&match args.output {
        Format::Text => text::render(&answer),
        Format::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Format::Yaml => serde_yaml_ng::to_string(&answer)?,
    })?;
    let as_expected = match args.expect {
        None => true,
        // Where nobody judges, everybody is let in.
        Some(Verdict::Allow) => {
            answer.cases.iter().all(|case| !matches!(&*case.verdict, "deny" | "per_request"))
        }
        Some(Verdict::Deny) => answer.cases.iter().all(|case| case.verdict == "deny"),
    };
    Ok(if as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl RequestArgs {
    /// The request that is asked about, if any part of one is given.
    fn read(&self) -> anyhow::Result<Option<HttpRequest>> {
        let Self { method, path, host, headers, jwt } = self;
        let nothing =
            method.is_none() && path.is_none() && host.is_none() && headers.is_empty() && jwt.is_none();
        if nothing {
            return Ok(None);
        }
        let header = |field: &String| match field.split_once(['=', ':']) {
            Some((name, value)) if !name.is_empty() => {
                Ok(HttpHeader { name: name.to_owned(), value: value.trim_start().to_owned() })
            }
            _ => bail!("{field:?} is not a header field; use NAME=VALUE"),
        };
        Ok(Some(HttpRequest {
            method: method.clone().unwrap_or_else(|| "GET".to_owned()),
            path: path.clone().unwrap_or_else(|| "/".to_owned()),
            host: host.clone().unwrap_or_default(),
            headers: headers.iter().map(header).collect::<anyhow::Result<_>>()?,
            token: jwt.as_ref().map(token).transpose()?.unwrap_or_default(),
        }))
    }
}

fn token(file: &Location) -> anyhow::Result<String> {
    let path = file.0.display();
    let size = fs::metadata(&file.0).with_context(|| format!("cannot read the token in {path}"))?.len();
    ensure!(size <= MAX_TOKEN, "{path} is larger than {MAX_TOKEN} bytes: no token is");
    let text = fs::read_to_string(&file.0).with_context(|| format!("cannot read the token in {path}"))?;
    let token = text.trim();
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    let is_claims = token.starts_with('{') && serde_json::from_str::<serde_json::Value>(token).is_ok();
    ensure!(
        is_claims || token.split('.').count() == 3,
        "{path} holds neither a JWT (three parts with dots between them) nor a JSON object of claims"
    );
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        request: RequestArgs,
    }

    fn read(line: &[&str]) -> anyhow::Result<Option<HttpRequest>> {
        Line::try_parse_from(["explain"].iter().chain(line)).unwrap().request.read()
    }

    #[test]
    fn any_part_of_a_request_makes_one() {
        assert_eq!(read(&[]).unwrap(), None);
        let request =
            read(&["--path", "/a?b=c", "--header", "X-Team=a=b", "--header", "Accept: */*"]).unwrap();
        let request = request.unwrap();
        assert_eq!((&*request.method, &*request.path), ("GET", "/a?b=c"));
        let fields: Vec<_> = request.headers.iter().map(|field| (&*field.name, &*field.value)).collect();
        assert_eq!(fields, [("X-Team", "a=b"), ("Accept", "*/*")]);
        assert!(read(&["--header", "nothing"]).unwrap_err().to_string().contains("NAME=VALUE"));
    }

    #[test]
    fn a_token_is_a_jwt_or_claims() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            let path = dir.path().join("token");
            fs::write(&path, text).unwrap();
            read(&["--jwt", path.to_str().unwrap()]).map(|request| request.unwrap().token)
        };
        assert_eq!(of("Bearer a.b.c\n").unwrap(), "a.b.c");
        assert_eq!(of(" {\"iss\": \"x\"}\n").unwrap(), "{\"iss\": \"x\"}");
        for bad in ["", "abc", "{iss: x}"] {
            assert!(of(bad).unwrap_err().to_string().contains("neither a JWT"), "{bad}");
        }
    }
}
