"""Socket options: set, asked for, and what they do."""

import errno
import socket
import struct
import time
from socket import IPPROTO_IP, IPPROTO_TCP, SOL_SOCKET

from program import error_of, events, program, received, run, settle, state, tried, until

SO_COOKIE, SO_MAX_PACING_RATE, SO_PRIORITY, SO_MARK = 57, 47, 12, 36
SO_ORIGINAL_DST, IP_MTU, IP_TTL = 80, 14, 2
TCP_MD5SIG, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT = 14, 18, 25


def set_and_asked(sock, level, name, value):
    done = tried(sock.setsockopt, level, name, value)
    return done if done != "ok" else sock.getsockopt(level, name)


def both(level, name, value):
    """A program that sets an option on either end of a connection, and asks for it."""

    def ask(site):
        client, server = site.pair()
        yield "before", [client.getsockopt(level, name), server.getsockopt(level, name)]
        yield "set", [set_and_asked(client, level, name, value), set_and_asked(server, level, name, value)]
        client.send(b"question")
        yield "the server reads", received(server)
        server.send(b"answer")
        yield "the client reads", received(client)

    return ask


for called, option in {
    "no_delay": (IPPROTO_TCP, socket.TCP_NODELAY, 1),
    "quick_acknowledgements": (IPPROTO_TCP, socket.TCP_QUICKACK, 0),
    "keepalive": (SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "keepalive_idle": (IPPROTO_TCP, socket.TCP_KEEPIDLE, 7),
    "keepalive_interval": (IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    "keepalive_count": (IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    "user_timeout": (IPPROTO_TCP, TCP_USER_TIMEOUT, 4000),
    "linger_in_fin_wait_2": (IPPROTO_TCP, socket.TCP_LINGER2, 9),
    "low_water_of_unsent": (IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384),
    "type_of_service": (IPPROTO_IP, socket.IP_TOS, 0x28),
    "time_to_live": (IPPROTO_IP, IP_TTL, 9),
    "priority": (SOL_SOCKET, SO_PRIORITY, 5),
    "mark": (SOL_SOCKET, SO_MARK, 77),
    "pacing": (SOL_SOCKET, SO_MAX_PACING_RATE, 12_500_000),
}.items():
    asks = both(*option)
    asks.__name__ = called
    program(asks)


@program
def buffers(site):
    listener, client = site.server.listen(), site.client.socket()
    for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        yield "set", set_and_asked(client, SOL_SOCKET, name, 30_000)
    yield "connect", tried(client.connect, listener.getsockname())
    yield "kept", [client.getsockopt(SOL_SOCKET, name) for name in (socket.SO_SNDBUF, socket.SO_RCVBUF)]


@program
def congestion_control(site):
    client, _ = site.pair()
    yield "set", tried(client.setsockopt, IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    yield "asked", client.getsockopt(IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


@program
def what_it_is(site):
    client, server = site.pair()
    for name in (socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL, socket.SO_ACCEPTCONN):
        yield "asked", [client.getsockopt(SOL_SOCKET, name), server.getsockopt(SOL_SOCKET, name)]
    yield "states", [state(client), state(server)]
    yield "has a cookie", struct.unpack("Q", client.getsockopt(SOL_SOCKET, SO_COOKIE, 8))[0] != 0


@program
def segment_size(site):
    client, server = site.pair()
    yield "the client's", client.getsockopt(IPPROTO_TCP, socket.TCP_MAXSEG)
    yield "the server's", server.getsockopt(IPPROTO_TCP, socket.TCP_MAXSEG)


@program
def path_mtu(site):
    client, server = site.pair()
    yield "the client's", tried(client.getsockopt, IPPROTO_IP, IP_MTU)
    yield "the server's", tried(server.getsockopt, IPPROTO_IP, IP_MTU)


@program
def original_destination(site):
    _, server = site.pair()
    yield "asked", str(tried(server.getsockopt, IPPROTO_IP, SO_ORIGINAL_DST, 16))


@program
def counted_by_the_kernel(site):
    client, server = site.pair()
    client.send(bytes(1000))
    server.recv(1000)
    settle()
    info = client.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 232)
    acknowledged, received_bytes = struct.unpack_from("QQ", info, 120)
    yield "acknowledged", acknowledged
    yield "received", received_bytes
    yield "retransmitted", struct.unpack_from("B", info, 2)[0]


@program
def in_the_kernels_table(site):
    client, server = site.pair()

    def remote(pod, sock):
        port = "%04X" % sock.getsockname()[1]
        for line in pod.read("/proc/net/tcp").splitlines()[1:]:
            words = line.split()
            if words[1].endswith(":" + port) and words[3] == "01":
                host, at = words[2].split(":")
                peer = sock.getpeername()
                same = socket.inet_ntoa(bytes.fromhex(host)[::-1]) == peer[0]
                return ["the peer's address" if same else "another address", int(at, 16) == peer[1]]
        return "no entry"

    yield "the client's connection", remote(site.client, client)


@program
def signatures(site):
    listener, client = site.server.socket(), site.client.socket(blocking=False)
    key = b"secret"

    def signed_with(sock, host):
        peer = struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(host)).ljust(128, b"\0")
        signature = peer + struct.pack("=BBHi", 0, 0, len(key), 0) + key.ljust(80, b"\0")
        return tried(sock.setsockopt, IPPROTO_TCP, TCP_MD5SIG, signature)

    yield "keys", [signed_with(listener, site.client.v4), signed_with(client, site.server.v4)]
    listener.bind((site.server.v4, 0))
    listener.listen(4)
    tried(client.connect, listener.getsockname())
    yield "connected", events(client, wait=1.5)


@program
def keepalive_of_one_that_lives(site):
    client, server = site.pair()
    for sock in (client, server):
        sock.setsockopt(SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
            sock.setsockopt(IPPROTO_TCP, name, 1)
    time.sleep(2.5)
    yield "poll", [events(client), events(server)]
    client.send(b"still here")
    yield "read", received(server)


run()
