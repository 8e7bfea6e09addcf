"""connect(2): whom it reaches, how it fails, from which ports."""

import ctypes
import socket
import struct
from socket import AF_INET, AF_INET6, IPPROTO_IP, IPPROTO_TCP, SO_REUSEADDR, SOL_SOCKET

from program import (
    LIBC, Took, error_of, events, now, program, received, run, settle, state, tried, to_others, until,
)

IP_LOCAL_PORT_RANGE = 51
IP_BIND_ADDRESS_NO_PORT = 24
TCP_FASTOPEN_CONNECT = 30
MSG_FASTOPEN = 0x20000000
TCP_USER_TIMEOUT = 18


def told(site, listener, client):
    accepted, address = listener.accept()
    site.opened.append(accepted)
    yield "the server sees", site.whom(address)
    yield "the server is", site.whom(accepted.getsockname())
    yield "getpeername", site.whom(client.getpeername())
    yield "getsockname", site.whom(client.getsockname())
    yield "the peer's port is the one dialled", client.getpeername()[1] == listener.getsockname()[1]


@program
def reaches(site):
    listener, client = site.server.listen(), site.client.socket()
    yield "before", site.whom(client.getsockname())
    yield "connect", tried(client.connect, listener.getsockname())
    yield from told(site, listener, client)


@program
def reaches_over_ipv6(site):
    listener, client = site.server.listen(site.server.v6), site.client.socket(AF_INET6)
    yield "connect", tried(client.connect, listener.getsockname())
    yield from told(site, listener, client)


@program
def reaches_by_a_mapped_address(site):
    listener, client = site.server.listen(), site.client.socket(AF_INET6)
    host, port = listener.getsockname()
    yield "connect", tried(client.connect, ("::ffff:" + host, port))
    yield from told(site, listener, client)


@program
def the_server_sees_the_port_of_getsockname(site):
    listener, client = site.server.listen(), site.client.socket()
    client.connect(listener.getsockname())
    accepted, address = listener.accept()
    site.opened.append(accepted)
    yield "ports agree", address[1] == client.getsockname()[1]


@program
def from_a_bound_address(site):
    listener, client = site.server.listen(), site.client.socket()
    client.bind((site.client.v4, 0))
    port = client.getsockname()[1]
    yield "connect", tried(client.connect, listener.getsockname())
    yield "keeps its port", client.getsockname()[1] == port
    yield from told(site, listener, client)


@program
def from_a_bound_address_without_port(site):
    listener, client = site.server.listen(), site.client.socket()
    client.setsockopt(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((site.client.v4, 0))
    yield "port before", client.getsockname()[1]
    yield "connect", tried(client.connect, listener.getsockname())
    yield "has a port", client.getsockname()[1] != 0
    yield from told(site, listener, client)


@program
def from_a_device(site):
    listener, client = site.server.listen(), site.client.socket()
    client.setsockopt(SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    yield "connect", tried(client.connect, listener.getsockname())
    yield from told(site, listener, client)


@program
def one_bound_port_to_two_servers(site):
    port = None
    for _ in range(2):
        listener, client = site.server.listen(), site.client.socket()
        client.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        client.bind((site.client.v4, port or 0))
        port = client.getsockname()[1]
        yield "connect", tried(client.connect, listener.getsockname())


@program
def one_bound_port_twice_to_one_server(site):
    listener, port = site.server.listen(), None
    for _ in range(2):
        client = site.client.socket()
        client.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        client.bind((site.client.v4, port or 0))
        port = client.getsockname()[1]
        yield "connect", tried(client.connect, listener.getsockname())


def ranged(site, first, last):
    client = site.client.socket()
    client.setsockopt(IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", last << 16 | first))
    return client


@program
def more_connections_than_ports(site):
    listener = site.server.listen()
    yield "four ports, six connections", [tried(ranged(site, 51000, 51003).connect, listener.getsockname()) for _ in range(6)]


@program
def ports_are_shared_among_servers(site):
    for _ in range(3):
        listener = site.server.listen()
        yield "four ports", [tried(ranged(site, 51010, 51013).connect, listener.getsockname()) for _ in range(4)]


@program
def refused(site):
    client, start = site.client.socket(), now()
    yield "connect", tried(client.connect, site.server.closed_port())
    yield "took", Took(start)
    yield "getpeername", tried(client.getpeername)
    yield "SO_ERROR", error_of(client)
    yield "state", state(client)


@program
def refused_over_ipv6(site):
    client, start = site.client.socket(AF_INET6), now()
    yield "connect", tried(client.connect, site.server.closed_port(site.server.v6))
    yield "took", Took(start)


@program
def refused_without_blocking(site):
    client, start = site.client.socket(blocking=False), now()
    yield "connect", tried(client.connect, site.server.closed_port())
    yield "poll", events(client, wait=3)
    yield "took", Took(start)
    yield "SO_ERROR", [error_of(client), error_of(client)]


@program
def refused_then_let_in(site):
    client, address = site.client.socket(), site.server.closed_port()
    yield "first", tried(client.connect, address)
    listener = site.server.listen(port=address[1], options=[(SOL_SOCKET, SO_REUSEADDR, 1)])
    yield "second", tried(client.connect, address)
    yield from told(site, listener, client)


@program
def refused_right_after_others_were_let_in(site):
    listener = site.server.listen()
    for _ in range(3):
        yield "let in", tried(site.client.socket().connect, listener.getsockname())
        site.accept(listener)
    address = listener.getsockname()
    listener.close()
    settle()
    start = now()
    yield "refused", tried(site.client.socket().connect, address)
    yield "took", Took(start)


@program
def refused_at_port_zero(site):
    yield "connect", tried(site.client.socket().connect, (site.server.v4, 0))


@program
def let_in_without_blocking(site):
    listener, client = site.server.listen(), site.client.socket(blocking=False)
    yield "connect", tried(client.connect, listener.getsockname())
    yield "poll", events(client, wait=3)
    yield "SO_ERROR", error_of(client)
    yield "again", [tried(client.connect, listener.getsockname()) for _ in range(2)]
    yield from told(site, listener, client)


@program
def connected_already(site):
    listener, client = site.server.listen(), site.client.socket()
    client.connect(listener.getsockname())
    yield "again", tried(client.connect, listener.getsockname())
    yield "elsewhere", tried(client.connect, site.server.closed_port())
    client.send(b"still here")
    yield "the server reads", received(site.accept(listener))


@program
def dissolved_and_connected_elsewhere(site):
    first, second, client = site.server.listen(), site.server.listen(), site.client.socket()
    client.connect(first.getsockname())
    accepted = site.accept(first)
    nowhere = struct.pack("H14x", socket.AF_UNSPEC)
    yield "AF_UNSPEC", LIBC.connect(client.fileno(), ctypes.c_char_p(nowhere), 16)
    yield "getpeername", tried(client.getpeername)
    yield "the first server", until(accepted, "IN")
    yield "it reads", received(accepted)
    yield "connect", tried(client.connect, second.getsockname())
    yield from told(site, second, client)


@to_others
def nobody_answers(site):
    client = site.client.socket(blocking=False)
    yield "connect", tried(client.connect, (site.silent, 80))
    yield "poll", events(client, wait=0.7)
    yield "again", tried(client.connect, (site.silent, 80))
    yield "getpeername", tried(client.getpeername)
    yield "getsockname", site.whom(client.getsockname())
    yield "state", state(client)


@to_others
def nobody_answers_two_syns(site):
    client, start = site.client.socket(), now()
    client.setsockopt(IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    yield "connect", tried(client.connect, (site.silent, 80))
    yield "took", Took(start)


@to_others
def nobody_answers_within_the_user_timeout(site):
    client, start = site.client.socket(), now()
    client.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)
    yield "connect", tried(client.connect, (site.silent, 80))
    yield "took", Took(start)


@to_others
def nobody_answers_within_the_send_timeout(site):
    client, start = site.client.socket(), now()
    client.setsockopt(SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 500_000))
    yield "connect", tried(client.connect, (site.silent, 80))
    yield "took", Took(start)


@to_others
def no_way_there(site):
    client = site.client.socket()
    client.setsockopt(IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    # How soon is chance: an ICMP message that comes while connect(2) still holds the socket is not heeded.
    yield "connect", tried(client.connect, (site.unreachable, 80))


@program
def a_backlog_that_is_full(site):
    listener = site.server.listen(backlog=2)
    clients = [site.client.socket(blocking=False) for _ in range(6)]
    for client in clients:
        tried(client.connect, listener.getsockname())
        settle()
    settle()
    yield "connected at first", sum(events(client) == "OUT" for client in clients)
    for _ in clients:
        site.accept(listener)
    yield "connected later", sum(until(client, "OUT", limit=5) == "OUT" for client in clients)


@program
def fifty_at_once(site):
    listener = site.server.listen()
    clients = [site.client.socket(blocking=False) for _ in range(50)]
    for client in clients:
        tried(client.connect, listener.getsockname())
    yield "connected", sum(events(client, wait=3) == "OUT" for client in clients)
    yield "ports", len({client.getsockname()[1] for client in clients})
    yield "accepted", len({site.accept(listener).getpeername()[1] for _ in clients})


@program
def fast_open_by_option(site):
    listener = site.server.listen(options=[(IPPROTO_TCP, socket.TCP_FASTOPEN, 16)])
    for _ in range(2):
        client = site.client.socket()
        client.setsockopt(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        yield "connect", tried(client.connect, listener.getsockname())
        yield "send", tried(client.send, b"early")
        yield "the server reads", received(site.accept(listener))
        client.close()


@program
def fast_open_by_sendto(site):
    listener = site.server.listen(options=[(IPPROTO_TCP, socket.TCP_FASTOPEN, 16)])
    client = site.client.socket()
    yield "sendto", tried(client.sendto, b"early", MSG_FASTOPEN, listener.getsockname())
    yield "the server reads", received(site.accept(listener))
    yield "getpeername", site.whom(client.getpeername())


@program
def fast_open_to_nobody(site):
    client = site.client.socket()
    yield "sendto", tried(client.sendto, b"early", MSG_FASTOPEN, site.server.closed_port())


@program
def a_listener_that_goes_before_it_accepts(site):
    listener, client = site.server.listen(), site.client.socket()
    client.connect(listener.getsockname())
    settle()
    listener.close()
    yield "poll", until(client, "HUP")
    yield "recv", received(client)


@program
def the_pod_itself(site):
    for host in (site.client.v4, "127.0.0.1", site.client.v6, "::1"):
        listener = site.client.listen(host)
        client = site.client.socket(AF_INET6 if ":" in host else AF_INET)
        yield "connect", tried(client.connect, listener.getsockname())
        yield "the server sees", site.whom(listener.accept()[1])
    yield "refused", tried(site.client.socket().connect, site.client.closed_port())


run()
