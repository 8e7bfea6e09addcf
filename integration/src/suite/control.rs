//! The harness tried on itself: without agents, everything these tests look for is there to be found.

use anyhow::{Result, ensure};

use super::{SECOND, Test, marker, unstarted};
use crate::{
    load::{ports, side_by_side},
    tools::HTTP_BODY,
    world::World,
};

pub(super) const TESTS: &[Test] = &[unstarted(
    "control::without_agents_the_wire_is_readable",
    "the captures, clients and servers of these tests find what is there",
    &[],
    readable,
)];

fn readable(world: &mut World) -> Result<()> {
    for v6 in [false, true] {
        let secret = marker("control");
        let server = world.pod("b").ip(v6);
        let host = if v6 { format!("[{server}]") } else { server.to_string() };
        let url = format!("http://{host}:{}/", ports::HTTP);
        let captures = (world.capture_link("control")?, world.capture_pod("a", "control")?);
        ensure!(world.curl("a", &["-d", &secret, &url])?.ok()? == secret, "curl -d {url}");
        ensure!(world.curl("a", &[&url])?.ok()? == HTTP_BODY, "curl {url}");
        let (link, pod) = (captures.0.stop()?, captures.1.stop()?);
        for captured in [&link, &pod] {
            ensure!(
                captured.contains(&secret) && captured.carries(ports::HTTP, HTTP_BODY.trim()),
                "{url} not seen"
            );
            ensure!(captured.dialled() == [(server, ports::HTTP)], "{:?}", captured.dialled());
        }
        let attempt = world.connect("a", (server, 7_777), &[])?;
        ensure!(attempt.error.as_deref() == Some("ConnectionRefused"), "{attempt:?}");
    }
    let attempt = world.connect("a", (world.pod("b").v4, ports::RESET), &["--send", "x", "--no-fin"])?;
    ensure!(attempt.error.as_deref() == Some("ConnectionReset"), "{attempt:?}");
    world.must_reach("a", "b")?;
    world.must_reach("c", "d")?;
    world.must_reach("e", "b")?;
    let to = format!("{}:{}", world.pod("b").v4, ports::ECHO);
    for arguments in [["churn", "--to", &to, "--count", "200"], ["many", "--to", &to, "--connections", "200"]]
    {
        let tally = world.tool("a", &arguments, 30 * SECOND)?;
        ensure!(tally["good"] == 200 && tally["failed"] == 0, "{arguments:?}: {tally}");
    }
    let [figures] = side_by_side([("direct", world.lane("a", "b"))], 1, |_, _| {})?;
    ensure!(figures.one_stream_gbps > 0.1 && figures.http_requests_per_second > 100.0, "{figures:?}");
    Ok(())
}
