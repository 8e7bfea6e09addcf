"""Bytes: read, written, peeked at, urgent, in files and pipes; full buffers and time-outs."""

import array
import fcntl
import hashlib
import os
import select
import socket
import struct
import tempfile
import termios
import threading
from socket import AF_INET6, IPPROTO_TCP, MSG_DONTWAIT, MSG_OOB, MSG_PEEK, MSG_WAITALL, SOL_SOCKET

from program import About, Took, events, fill, now, program, received, run, settle, tried, until, whole

SIOCATMARK = 0x8905
SIOCOUTQ = 0x5411
MSG_MORE = 0x8000
MSG_TRUNC = 0x20


def asked(sock, request):
    answer = array.array("i", [0])
    fcntl.ioctl(sock, request, answer)
    return answer[0]


@program
def there_and_back(site):
    for family in (socket.AF_INET, AF_INET6):
        client, server = site.pair(family)
        yield "send", client.send(b"there")
        yield "read", received(server)
        yield "send", server.send(b"back")
        yield "read", received(client)


@program
def the_server_speaks_first(site):
    client, server = site.pair()
    start = now()
    server.send(b"220 ready")
    yield "read", received(client)
    yield "took", Took(start)


@program
def peeked_at(site):
    client, server = site.pair()
    client.send(b"twice")
    yield "peek", [received(server, 3, MSG_PEEK), received(server, 64, MSG_PEEK)]
    yield "read", received(server)
    yield "nothing left", received(server, 64, MSG_PEEK | MSG_DONTWAIT)


@program
def all_that_was_asked_for(site):
    client, server = site.pair()
    client.send(b"first ")
    threading.Timer(0.2, client.send, [b"second"]).start()
    yield "read", received(server, 12, MSG_WAITALL)
    client.send(b"short")
    client.shutdown(socket.SHUT_WR)
    yield "at the end", received(server, 12, MSG_WAITALL)


@program
def nothing_there_yet(site):
    client, server = site.pair()
    yield "recv", [received(client, 1, MSG_DONTWAIT), received(server, 1, MSG_DONTWAIT)]
    server.setblocking(False)
    yield "without blocking", received(server)


@program
def no_bytes(site):
    client, server = site.pair()
    yield "send", client.send(b"")
    settle()
    yield "the server", events(server)
    yield "recv of none", received(server, 0)


@program
def a_low_water_mark(site):
    client, server = site.pair()
    server.setsockopt(SOL_SOCKET, socket.SO_RCVLOWAT, 100)
    client.send(bytes(50))
    settle()
    yield "fifty", events(server)
    client.send(bytes(50))
    yield "a hundred", until(server, "IN")
    yield "read", len(server.recv(1000))


@program
def how_much_there_is(site):
    client, server = site.pair()
    client.send(bytes(1000))
    until(server, "IN")
    yield "FIONREAD", asked(server, termios.FIONREAD)
    settle()
    yield "SIOCOUTQ", asked(client, SIOCOUTQ)
    server.recv(400)
    yield "FIONREAD", asked(server, termios.FIONREAD)


@program
def urgent_in_line(site):
    client, server = site.pair()
    server.setsockopt(SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.send(b"before")
    client.send(b"!", MSG_OOB)
    client.send(b"after")
    until(server, "IN", "PRI", limit=1.0)
    settle()
    yield "poll", events(server)
    yield "up to the mark", received(server)
    yield "at the mark", asked(server, SIOCATMARK)
    yield "on", received(server, 64, MSG_DONTWAIT)


@program
def urgent_apart(site):
    client, server = site.pair()
    client.send(b"before")
    client.send(b"!", MSG_OOB)
    yield "poll", until(server, "IN", "PRI", limit=1.0)
    yield "select", [len(ready) for ready in select.select([server], [], [server], 1)]
    yield "urgent", received(server, 1, MSG_OOB)
    yield "again", received(server, 1, MSG_OOB)
    client.send(b"after")
    settle()
    yield "read", [received(server, 64, MSG_DONTWAIT), received(server, 64, MSG_DONTWAIT)]


@program
def urgent_from_the_server(site):
    client, server = site.pair()
    server.send(b"?", MSG_OOB)
    yield "poll", until(client, "PRI")
    yield "urgent", received(client, 1, MSG_OOB)


@program
def no_urgent_data(site):
    client, server = site.pair()
    client.send(b"plain")
    until(server, "IN")
    yield "recv", received(server, 1, MSG_OOB)
    yield "at the mark", asked(server, SIOCATMARK)


@program
def corked(site):
    client, server = site.pair()
    client.setsockopt(IPPROTO_TCP, socket.TCP_CORK, 1)
    client.send(b"one ")
    client.send(b"two")
    client.setsockopt(IPPROTO_TCP, socket.TCP_CORK, 0)
    settle()
    yield "read", received(server)


@program
def with_more_to_come(site):
    client, server = site.pair()
    client.send(b"one ", MSG_MORE)
    client.send(b"two")
    settle()
    yield "read", received(server)


@program
def small_and_at_once(site):
    client, server = site.pair()
    client.setsockopt(IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = now()
    for _ in range(50):
        client.send(b"x")
        server.recv(1)
        server.send(b"y")
        client.recv(1)
    yield "took", Took(start)


@program
def two_thousand_small_ones(site):
    client, server = site.pair()
    for number in range(2000):
        client.send(bytes([number % 256]))
    client.shutdown(socket.SHUT_WR)
    yield "in order", whole(server) == bytes(number % 256 for number in range(2000))


@program
def gathered_and_scattered(site):
    client, server = site.pair()
    yield "sendmsg", client.sendmsg([b"one", b"two", b"three"])
    until(server, "IN")
    parts = [bytearray(3), bytearray(3), bytearray(9)]
    size, _, flags, address = server.recvmsg_into(parts)
    yield "recvmsg", [size, flags, address is None or bool(address), [part.rstrip(b"\0").decode() for part in parts]]


@program
def thrown_away(site):
    client, server = site.pair()
    client.send(b"unread" + b"read")
    until(server, "IN")
    yield "discarded", len(server.recv(6, MSG_TRUNC))
    yield "left", received(server)


@program
def from_a_file(site):
    client, server = site.pair()
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(300_000))
        file.flush()
        sent = 0
        while sent < 300_000:
            sent += os.sendfile(client.fileno(), file.fileno(), sent, 300_000 - sent)
        client.shutdown(socket.SHUT_WR)
        file.seek(0)
        yield "the same", hashlib.sha256(whole(server)).digest() == hashlib.sha256(file.read()).digest()


@program
def through_a_pipe(site):
    client, server = site.pair()
    reader, writer = os.pipe()
    os.write(writer, b"by a pipe")
    yield "in", os.splice(reader, client.fileno(), 100)
    until(server, "IN")
    yield "out", os.splice(server.fileno(), writer, 100)
    yield "read", os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)


@program
def much_both_ways(site):
    client, server = site.pair()
    there, back = os.urandom(3_000_000), os.urandom(3_000_000)
    writers = [threading.Thread(target=end.sendall, args=[text], daemon=True) for end, text in ((client, there), (server, back))]
    for writer in writers:
        writer.start()
    got = {}
    reader = threading.Thread(target=lambda: got.update(back=whole(client, len(back))), daemon=True)
    reader.start()
    yield "there", whole(server, len(there)) == there
    reader.join(10)
    yield "back", got.get("back") == back


@program
def a_reader_that_sleeps(site):
    client, server = site.pair()
    taken = fill(client)
    yield "taken", About(taken)
    yield "poll", events(client)
    client.shutdown(socket.SHUT_WR)
    yield "read later", len(whole(server)) == taken


@program
def a_client_that_does_not_read(site):
    client, server = site.pair()
    taken = fill(server)
    yield "taken", About(taken)
    server.close()
    yield "read later", len(whole(client)) == taken


@program
def a_receive_timeout(site):
    client, _ = site.pair()
    client.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 300_000))
    start = now()
    yield "recv", received(client)
    yield "took", Took(start)


@program
def a_send_timeout(site):
    client, _ = site.pair()
    fill(client)
    client.setblocking(True)
    client.setsockopt(SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 300_000))
    start = now()
    yield "send", tried(client.send, bytes(65536))
    yield "took", Took(start)


@program
def no_errors_in_the_queue(site):
    client, _ = site.pair()
    client.send(b"x")
    settle()
    yield "recv", received(client, 1, socket.MSG_ERRQUEUE | MSG_DONTWAIT)


run()
