"""listen(2) and accept(2): who comes, in which order, with which options."""

import socket
import struct
from socket import IPPROTO_TCP, SO_KEEPALIVE, SO_REUSEADDR, SOL_SOCKET

from program import Took, abort, events, now, program, received, run, settle, tried, until


@program
def in_the_order_of_connects(site):
    listener = site.server.listen()
    for number in range(8):
        client = site.client.socket()
        client.connect(listener.getsockname())
        client.send(str(number).encode())
    yield "order", "".join(received(site.accept(listener), 1) for _ in range(8))


@program
def without_blocking(site):
    listener, client = site.server.listen(), site.client.socket()
    listener.setblocking(False)
    yield "nobody", [tried(listener.accept), events(listener)]
    client.connect(listener.getsockname())
    yield "somebody", events(listener, wait=2)
    accepted, _ = listener.accept()
    site.opened.append(accepted)
    yield "accepted", accepted.getsockname() == listener.getsockname()
    yield "nobody else", tried(listener.accept)


@program
def within_a_receive_timeout(site):
    listener, start = site.server.listen(), now()
    listener.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 300_000))
    yield "accept", tried(listener.accept)
    yield "took", Took(start)


@program
def options_are_inherited(site):
    options = [(SOL_SOCKET, SO_KEEPALIVE, 1), (IPPROTO_TCP, socket.TCP_NODELAY, 1), (SOL_SOCKET, socket.SO_RCVBUF, 20_000)]
    listener, client = site.server.listen(options=options), site.client.socket()
    client.connect(listener.getsockname())
    accepted = site.accept(listener)
    yield "inherited", [accepted.getsockopt(level, name) for level, name, _ in options]


@program
def how_many_wait(site):
    listener = site.server.listen(backlog=7)
    for _ in range(3):
        site.client.socket().connect(listener.getsockname())
    settle()
    info = listener.getsockopt(IPPROTO_TCP, socket.TCP_INFO, 104)
    yield "waiting", struct.unpack_from("I", info, 24)[0]
    yield "backlog", struct.unpack_from("I", info, 28)[0]


@program
def deferred_until_there_is_data(site):
    listener, client = site.server.listen(options=[(IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)]), site.client.socket()
    yield "connect", tried(client.connect, listener.getsockname())
    settle()
    yield "without data", events(listener)
    client.send(b"data")
    yield "with data", events(listener, wait=3)
    yield "read", received(site.accept(listener), 64, socket.MSG_DONTWAIT)


@program
def one_that_has_reset_meanwhile(site):
    listener, client = site.server.listen(), site.client.socket()
    client.connect(listener.getsockname())
    settle()
    abort(client)
    settle()
    yield "listener", events(listener)
    accepted = site.accept(listener)
    yield "getpeername", tried(accepted.getpeername)
    yield "recv", [received(accepted), received(accepted)]


@program
def one_that_has_spoken_and_gone(site):
    listener, client = site.server.listen(), site.client.socket()
    client.connect(listener.getsockname())
    client.send(b"last words")
    client.close()
    settle()
    accepted, address = listener.accept()
    site.opened.append(accepted)
    yield "whom", site.whom(address)
    yield "recv", [received(accepted), received(accepted)]


@program
def two_listeners_of_one_port(site):
    option = [(SOL_SOCKET, socket.SO_REUSEPORT, 1)]
    first = site.server.listen(options=option)
    second = site.server.listen(port=first.getsockname()[1], options=option)
    for _ in range(24):
        site.client.socket().connect(first.getsockname())
    counts = []
    for listener in (first, second):
        listener.setblocking(False)
        counts.append(0)
        while events(listener, wait=0.2):
            site.accept(listener)
            counts[-1] += 1
    yield "all", sum(counts)
    yield "both", all(counts)


@program
def on_all_addresses(site):
    listener = site.server.listen("::")
    port = listener.getsockname()[1]
    for host, family in ((site.server.v4, socket.AF_INET), (site.server.v6, socket.AF_INET6)):
        client = site.client.socket(family)
        yield "connect", tried(client.connect, (host, port))
        accepted, address = listener.accept()
        site.opened.append(accepted)
        yield "sees", [site.whom(address), site.whom(accepted.getsockname())]


@program
def on_loopback_alone(site):
    listener = site.server.listen("127.0.0.1")
    yield "connect", tried(site.client.socket().connect, (site.server.v4, listener.getsockname()[1]))


@program
def on_one_address_of_two_families(site):
    listener = site.server.listen(site.server.v6)
    yield "IPv4", tried(site.client.socket().connect, (site.server.v4, listener.getsockname()[1]))
    yield "IPv6", tried(site.client.socket(socket.AF_INET6).connect, (site.server.v6, listener.getsockname()[1]))


@program
def bound_to_a_device(site):
    listener = site.server.listen(options=[(SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")])
    client = site.client.socket(blocking=False)
    tried(client.connect, listener.getsockname())
    yield "connect", events(client, wait=2)
    client.send(b"hello")
    listener.setblocking(False)
    yield "accept", events(listener, wait=2)
    accepted = site.accept(listener)
    accepted.setblocking(True)
    yield "reads", received(accepted)
    accepted.send(b"answer")
    client.setblocking(True)
    yield "answer", received(client)


def bound_again(site, server_first, reuse):
    """A connection that ends, and a bind to the server's port afterwards."""
    client, server = site.pair()
    port = server.getsockname()[1]
    first, second = (server, client) if server_first else (client, server)
    first.close()
    until(second, "RDHUP")
    second.close()
    settle()
    listener = site.server.socket()
    if reuse:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    return tried(listener.bind, (site.server.v4, port))


@program
def on_a_port_whose_server_closed_first(site):
    yield "bind", bound_again(site, True, False)
    yield "bind with SO_REUSEADDR", bound_again(site, True, True)


@program
def on_a_port_whose_client_closed_first(site):
    yield "bind with SO_REUSEADDR", bound_again(site, False, True)
    yield "bind", bound_again(site, False, False)


@program
def on_a_port_that_is_taken(site):
    listener = site.server.listen()
    other = site.server.socket()
    other.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    yield "bind", tried(other.bind, listener.getsockname())
    yield "all addresses", tried(other.bind, ("", listener.getsockname()[1]))


@program
def from_a_port_that_a_client_has(site):
    client, _ = site.pair()
    port = client.getsockname()[1]
    other = site.client.socket()
    yield "bind", tried(other.bind, (site.client.v4, port))
    other.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    yield "bind with SO_REUSEADDR", tried(other.bind, (site.client.v4, port))


run()
