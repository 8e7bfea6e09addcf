"""Clients that mean harm, over HTTP/1 on port 8090 and HTTP/2 with prior knowledge on 8091. Says on a line of its own what it saw.

Each opens what it needs, does its worst, says `ready`, and holds on until standard input ends, where that is said of it.
"""

import json
import select
import socket
import struct
import sys
import time

what, ip = sys.argv[1:3]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
INITIAL_WINDOW = 4


def told(**saw):
    print(json.dumps(saw), flush=True)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value, indexed=False):
    """Without compression; where it is indexed, both sides keep it (RFC 7541, section 6.2)."""

    def text(raw):
        if len(raw) < 127:
            return bytes([len(raw)]) + raw
        rest, out = len(raw) - 127, bytes([127])
        while rest >= 128:
            out, rest = out + bytes([rest % 128 + 128]), rest // 128
        return out + bytes([rest]) + raw

    return (b"\x40" if indexed else b"\x00") + text(name) + text(value)


def head(path):
    fields = {b":method": b"GET", b":scheme": b"http", b":authority": b"b", b":path": path}
    return b"".join(literal(name, value) for name, value in fields.items())


def connect(port, narrow=False):
    plain = socket.socket()
    if narrow:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(30)
    plain.connect((ip, port))
    return plain


def http2(settings=b"", narrow=False):
    plain = connect(8091, narrow)
    plain.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
    return plain


def pour(plain, pieces, limit=20):
    """Sends all that is taken in time; answers how much that was, and whether the other end has given up."""
    plain.setblocking(False)
    sent, end = 0, time.monotonic() + limit
    for piece in pieces:
        while piece:
            left = end - time.monotonic()
            if left <= 0:
                return sent, False
            try:
                if not select.select([], [plain], [], left)[1]:
                    return sent, False
                done = plain.send(piece)
            except OSError:
                return sent, True
            sent, piece = sent + done, piece[done:]
    return sent, False


def ended(plain, limit):
    """How long it takes until the other end ends, while all it says is read; what it said."""
    start, said = time.monotonic(), b""
    plain.setblocking(True)
    while (left := start + limit - time.monotonic()) > 0:
        plain.settimeout(left)
        try:
            piece = plain.recv(65536)
        except TimeoutError:
            break
        except OSError:
            return time.monotonic() - start, said
        if not piece:
            return time.monotonic() - start, said
        said = (said + piece)[-65536:]
    return None, said


def until_let_go(**saw):
    told(ready=True, **saw)
    sys.stdin.read()


def long_heads():
    """Too long, too many fields, and each of them of both sizes at once."""
    for name, fields in {
        "long": b"X: " + b"y" * 70_000 + b"\r\n",
        "many": b"".join(b"x-%d: y\r\n" % at for at in range(200)),
        "line": b"",
    }.items():
        plain = connect(8090)
        path = b"/" + b"p" * (70_000 if name == "line" else 1)
        pour(plain, [b"GET " + path + b" HTTP/1.1\r\nHost: b\r\n" + fields + b"\r\n"])
        _, said = ended(plain, 10)
        told(name=name, line=said.split(b"\r\n")[0].decode(), body=said.split(b"\r\n\r\n")[-1].decode())


def trickle():
    """Heads of HTTP/1 and header blocks of HTTP/2 that never end, one byte after another."""
    held = []
    for at in range(200):
        plain = connect(8090)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: b\r\nX: " + b"y" * (20_000 if at % 2 else 10))
        held.append(plain)
    for _ in range(50):
        plain = http2()
        plain.sendall(frame(HEADERS, 0, 1, head(b"/")))
        held.append(plain)
    told(ready=True)
    start, open_ones = time.monotonic(), list(held)
    answered = 0
    while open_ones and time.monotonic() < start + 100:
        time.sleep(1)
        for plain in list(open_ones):
            try:
                plain.send(frame(CONTINUATION, 0, 1, b"") if plain.getpeername()[1] == 8091 else b"z")
                if select.select([plain], [], [], 0)[0] and plain.getpeername()[1] == 8090:
                    answered += plain.recv(100).startswith(b"HTTP/1.1 408 ")
                    plain.close()
                    open_ones.remove(plain)
            except OSError:
                open_ones.remove(plain)
    told(took=time.monotonic() - start, left=len(open_ones), answered=answered)


def rapid_reset():
    streams = range(1, 80_001, 2)
    reset = struct.pack(">I", 8)
    block = head(b"/a.txt")
    pieces = (frame(HEADERS, 5, stream, block) + frame(RST, 0, stream, reset) for stream in streams)
    held = [http2() for _ in range(4)]
    told(sent=[pour(plain, pieces) for plain in held])


def continuations():
    held = [http2() for _ in range(4)]
    for plain in held:
        filler = literal(b"x", b"y" * 16_000)
        blocks = [frame(HEADERS, 1, 1, head(b"/"))] + [frame(CONTINUATION, 0, 1, filler)] * 4_000
        sent, gone = pour(plain, blocks)
        took, _ = ended(plain, 10)
        told(gone=gone or took is not None, sent=sent)


def unread(name, one, count):
    """Frames that have to be answered, from who reads no answer."""
    held = [http2(narrow=True) for _ in range(4)]
    sent = [pour(plain, [one * 1000] * count, limit=3) for plain in held]
    until_let_go(name=name, sent=sent)


def bombs():
    """Streams that never end, as their receiver grants no window, and heads behind them that are small only on the wire."""
    held = []
    for _ in range(16):
        plain = http2(struct.pack(">HI", INITIAL_WINDOW, 0))
        stuck = [frame(HEADERS, 5, stream, head(b"/big")) for stream in range(1, 257, 2)]
        entry = literal(b"x", b"y" * 3_900, indexed=True)
        heavy = [frame(HEADERS, 5, 257, head(b"/big") + entry)]
        # The youngest entry of the dynamic table is the 62nd.
        heavy += [frame(HEADERS, 5, stream, head(b"/big") + b"\xbe" * 15) for stream in range(259, 500, 2)]
        pour(plain, stuck + heavy)
        held.append(plain)
    time.sleep(2)
    until_let_go(connections=len(held))


def wont_read():
    """Downloads on many streams, with room on each of them, of which nothing is read."""
    held = []
    for _ in range(50):
        plain = http2(struct.pack(">HI", INITIAL_WINDOW, 2**31 - 1), narrow=True)
        plain.sendall(frame(WINDOW, 0, 0, struct.pack(">I", 2**30)))
        pour(plain, [frame(HEADERS, 5, stream, head(b"/big")) for stream in range(1, 201, 2)])
        held.append(plain)
    for _ in range(50):
        plain = connect(8090, narrow=True)
        plain.sendall(b"GET /big HTTP/1.1\r\nHost: b\r\n\r\n" * 20)
        held.append(plain)
    time.sleep(3)
    until_let_go(connections=len(held))


def crowd(of):
    """Connections that mean no harm: each has had an answer, or waits for the rest of its own body."""
    held = []
    for _ in range(400):
        if of == "http2":
            plain = http2()
            plain.sendall(frame(HEADERS, 5, 1, head(b"/a.txt")))
        else:
            plain = connect(8090)
            rest = of == "http1"
            method = b"GET" if rest else b"POST"
            length = b"" if rest else b"Content-Length: 100000\r\n"
            plain.sendall(method + (b" /a.txt" if rest else b" /echo") + b" HTTP/1.1\r\nHost: b\r\n" + length + b"\r\n" + (b"" if rest else b"x" * 1000))
        held.append(plain)
    for plain in held if of != "busy" else []:
        said = b""
        while b"what stands in a file" not in said:
            said += plain.recv(65536)
    time.sleep(2)
    until_let_go(connections=len(held))


{
    "long-heads": long_heads,
    "trickle": trickle,
    "rapid-reset": rapid_reset,
    "continuations": continuations,
    "settings": lambda: unread("settings", frame(SETTINGS, 0, 0), 2_000),
    "pings": lambda: unread("pings", frame(PING, 0, 0, b"12345678"), 2_000),
    "bombs": bombs,
    "wont-read": wont_read,
    "http1": lambda: crowd("http1"),
    "busy": lambda: crowd("busy"),
    "http2": lambda: crowd("http2"),
}[what]()
