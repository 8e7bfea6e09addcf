//! Many requests to the API at once, where kubectl would take minutes.

use std::{fmt::Write as _, process::Command, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::ApiServer;
use crate::process;

/// So many requests are under way at a time.
const PARALLEL: usize = 32;
/// So many go in one call of curl.
const CALL: usize = 2_000;

/// A change of the API's objects.
#[derive(Clone, Debug)]
pub struct Request {
    method: &'static str,
    path: String,
    content: &'static str,
    body: Value,
}

impl Request {
    /// Makes an object in the collection at `path`, as `/api/v1/nodes`.
    pub fn create(path: impl Into<String>, object: Value) -> Self {
        Self { method: "POST", path: path.into(), content: "application/json", body: object }
    }

    /// Merges `patch` into the object at `path`.
    pub fn patch(path: impl Into<String>, patch: Value) -> Self {
        Self { method: "PATCH", path: path.into(), content: "application/merge-patch+json", body: patch }
    }

    /// A section of curl's configuration.
    fn section(&self, api: &ApiServer) -> Result<String> {
        let quoted = |text: &str| serde_json::to_string(text);
        let pki = api.pki();
        let (path, admin) = (format!("{}{}", api.url(), self.path), "admin");
        let mut text = format!("request = {}\nurl = {}\n", quoted(self.method)?, quoted(&path)?);
        for (option, file) in
            [("cacert", pki.ca()), ("cert", pki.certificate(admin)), ("key", pki.key(admin))]
        {
            writeln!(text, "{option} = {}", quoted(&file.display().to_string())?)?;
        }
        writeln!(text, "header = \"Content-Type: {}\"", self.content)?;
        writeln!(text, "data-raw = {}", quoted(&self.body.to_string())?)?;
        text += "silent\nshow-error\nfail-with-body\nmax-time = 60\nwrite-out = \"\\n%{http_code}\\n\"\n";
        Ok(text)
    }
}

impl ApiServer {
    /// Sends `requests` as the administrator, many at a time and in no order; an answer other than success is an error.
    pub fn request(&self, requests: &[Request]) -> Result<()> {
        for requests in requests.chunks(CALL) {
            let sections: Result<Vec<String>> =
                requests.iter().map(|request| request.section(self)).collect();
            let mut curl: Command = self.netns().command("curl");
            curl.args(["--parallel", "--parallel-max", &PARALLEL.to_string(), "--config", "-"]);
            let done =
                process::run_with_input(&mut curl, &sections?.join("next\n"), Duration::from_secs(300))?;
            let succeeded = done.stdout.lines().filter(|line| matches!(*line, "200" | "201")).count();
            let refused = || {
                let said = done.stdout.lines().find(|line| line.contains("\"message\""));
                format!("{}{}", said.unwrap_or_default(), process::tail(&done.stderr))
            };
            ensure!(
                done.status.success() && succeeded == requests.len(),
                "{succeeded} of {} requests succeeded: {}",
                requests.len(),
                refused()
            );
        }
        Ok(())
    }
}
