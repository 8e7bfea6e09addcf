"""A mail server that says its word first, and tells the client what it got: just enough of RFC 5321."""

import socketserver
import sys


class Mail(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        self.say("220 mail.invalid ready")
        for line in self.rfile:
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self.say("354 go on")
                size = sum(len(line) for line in iter(self.rfile.readline, b".\r\n"))
                self.say(f"250 took {size} bytes from {self.client_address[0]}")
            elif word == b"QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 mail.invalid")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


with Server(("0.0.0.0", int(sys.argv[1])), Mail) as server:
    print("ready", flush=True)
    server.serve_forever()
