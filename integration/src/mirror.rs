//! An HTTP server in a pod that answers with what it was asked: path and header fields.

use std::{path::Path, time::Duration};

use anyhow::Result;

use crate::{process::Process, topology::Pod};

/// Where it listens.
pub const PORT: u16 = 8090;

const PROGRAM: &str = "
import http.server, sys
class Mirror(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = (self.path + '\\n' + str(self.headers)).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(('0.0.0.0', int(sys.argv[1])), Mirror)
print('ready', flush=True)
server.serve_forever()
";

/// Starts it.
pub fn start(pod: &Pod, folder: &Path) -> Result<Process> {
    let mut python = pod.netns.command("python3");
    let log = folder.join(format!("{}-mirror.log", pod.name));
    let mut mirror = Process::start(python.args(["-c", PROGRAM, &PORT.to_string()]), &log)?;
    mirror.wait_for("ready", Duration::from_secs(10))?;
    Ok(mirror)
}
