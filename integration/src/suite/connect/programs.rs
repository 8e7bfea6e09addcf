//! What clients and servers do in these tests, in Python: socket calls as applications make them.

use std::{fmt::Write as _, net::Ipv4Addr, time::Duration};

use anyhow::Result;

use crate::{process, topology::Pod};

/// Runs a program in a pod; answers with what it prints.
pub(super) fn python(pod: &Pod, program: &str) -> Result<String> {
    let mut command = pod.netns.command("python3");
    let told = process::run(command.args(["-c", program]), Duration::from_secs(30))?.ok()?;
    Ok(told.trim().to_owned())
}

/// Begins `count` connects at a time and closes the sockets again after half a second.
pub(super) fn given_up(to: Ipv4Addr, port: u16, count: usize) -> String {
    format!(
        "import socket, time\n\
         held = []\n\
         for _ in range({count}):\n\
         \x20   s = socket.socket()\n\
         \x20   s.setblocking(False)\n\
         \x20   assert s.connect_ex(('{to}', {port})) == 115\n\
         \x20   held.append(s)\n\
         time.sleep(0.5)\n\
         for s in held:\n\
         \x20   s.close()\n\
         print('given up')\n"
    )
}

/// A server with room for two that accepts nobody before `seconds` have passed, and then all.
pub(super) fn busy_server(port: u16, seconds: u32) -> String {
    format!(
        "import socket, time\n\
         s = socket.socket()\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('', {port}))\n\
         s.listen(1)\n\
         print('ready', flush=True)\n\
         time.sleep({seconds})\n\
         held = []\n\
         while True:\n\
         \x20   held.append(s.accept())\n"
    )
}

/// A server of both families that tells how many it has accepted within so many seconds.
pub(super) fn counting_server(port: u16, seconds: u32) -> String {
    format!(
        "import socket, time\n\
         s = socket.create_server(('', {port}), family=socket.AF_INET6, dualstack_ipv6=True)\n\
         print('ready', flush=True)\n\
         end, held = time.monotonic() + {seconds}, []\n\
         while (left := end - time.monotonic()) > 0:\n\
         \x20   s.settimeout(left)\n\
         \x20   try:\n\
         \x20       held.append(s.accept())\n\
         \x20   except TimeoutError:\n\
         \x20       pass\n\
         print('accepted', len(held), flush=True)\n"
    )
}

/// Connects `count` times at once and prints how long each took, in order, in seconds.
pub(super) fn crowd(to: Ipv4Addr, port: u16, count: usize) -> String {
    format!(
        "import socket, threading, time\n\
         took = []\n\
         def connect():\n\
         \x20   began = time.monotonic()\n\
         \x20   s = socket.create_connection(('{to}', {port}), timeout=15)\n\
         \x20   took.append(time.monotonic() - began)\n\
         \x20   time.sleep(0.1)\n\
         all = [threading.Thread(target=connect) for _ in range({count})]\n\
         for one in all: one.start()\n\
         for one in all: one.join()\n\
         print(*sorted(took))\n"
    )
}

/// Connects from one bound port to every server at a time, and counts those that answer.
pub(super) fn one_source_port(port: u16, servers: &[(Ipv4Addr, u16)]) -> String {
    let mut list = String::new();
    for (ip, port) in servers {
        let _: std::fmt::Result = write!(list, "('{ip}', {port}), ");
    }
    format!(
        "import socket\n\
         good, held = 0, []\n\
         for to in [{list}]:\n\
         \x20   s = socket.socket()\n\
         \x20   s.settimeout(3)\n\
         \x20   s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         \x20   s.bind(('', {port}))\n\
         \x20   s.connect(to)\n\
         \x20   assert s.getpeername() == to and s.getsockname()[1] == {port}\n\
         \x20   held.append(s)\n\
         for s in held:\n\
         \x20   s.sendall(b'hello')\n\
         \x20   s.shutdown(socket.SHUT_WR)\n\
         \x20   good += s.recv(5) != b''\n\
         print(good)\n"
    )
}
