// HTTP/1.1 on one port and HTTP/2 without TLS on another, on all IPv4 addresses.
const http = require("http"), http2 = require("http2");
const [port, port2] = process.argv.slice(2).map(Number);

function answer(request, response) {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    const peer = request.socket.remoteAddress;
    response.end(JSON.stringify({ method: request.method, url: request.url, bytes: body.length, version: request.httpVersion, peer }) + "\n");
  });
}

http.createServer(answer).listen(port, "0.0.0.0", () =>
  http2.createServer(answer).listen(port2, "0.0.0.0", () => console.log("ready")));
