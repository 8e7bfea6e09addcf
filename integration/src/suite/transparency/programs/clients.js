// What node sees of its servers: requests, refusals, a name with addresses of both families, HTTP/2.
const http = require("http"), http2 = require("http2"), net = require("net");
const [server, server6, silent, port, port2, closed] = process.argv.slice(2);

const tell = (name, what) => console.log(name, JSON.stringify(what));

function get(name, options) {
  return new Promise((done) => {
    const request = http.get({ port, path: "/" + name, ...options }, (response) => {
      let text = "";
      response.on("data", (chunk) => (text += chunk));
      response.on("end", () => done(tell(name, [response.statusCode, text.trim()])));
    });
    request.on("error", (error) => done(tell(name, error.code)));
  });
}

function dial(name, options, patience) {
  return new Promise((done) => {
    const socket = net.connect(options);
    socket.setTimeout(patience);
    socket.on("connect", () => { tell(name, ["connected", socket.remotePort, socket.remoteFamily]); socket.destroy(); });
    socket.on("timeout", () => { tell(name, "timeout"); socket.destroy(); });
    socket.on("error", (error) => tell(name, [error.code, error.syscall]));
    socket.on("close", done);
  });
}

// A name with an IPv6 address, at which nobody listens, and an IPv4 one.
const lookup = (_, options, callback) => callback(null, [{ address: server6, family: 6 }, { address: server, family: 4 }]);

function streams() {
  return new Promise((done) => {
    const session = http2.connect(`http://${server}:${port2}`);
    session.on("error", (error) => done(tell("http2", error.code)));
    let left = 20, bytes = 0;
    for (let number = 0; number < 20; number++) {
      const stream = session.request({ ":method": "POST", ":path": "/" + number });
      stream.on("data", (chunk) => (bytes += chunk.length));
      stream.on("end", () => { if (--left === 0) { session.close(); done(tell("http2", bytes)); } });
      stream.end(Buffer.alloc(50_000));
    }
  });
}

(async () => {
  await get("request", { host: server });
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  for (let number = 0; number < 3; number++) await get("kept-alive", { host: server, agent });
  agent.destroy();
  await get("fallback", { host: "both.invalid", lookup, autoSelectFamily: true });
  await get("refused", { host: server, port: closed });
  await dial("dial", { host: server, port }, 3000);
  await dial("dial refused", { host: server, port: closed }, 3000);
  await dial("dial in vain", { host: silent, port }, 700);
  await streams();
})();
