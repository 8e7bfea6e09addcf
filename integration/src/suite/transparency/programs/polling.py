"""poll(2), select(2), epoll(7): which events come when."""

import select
import socket

from program import Took, abort, error_of, events, fill, now, program, received, run, settle, to_others, tried, until, whole

NAMES = [
    (select.EPOLLIN, "IN"),
    (select.EPOLLOUT, "OUT"),
    (select.EPOLLRDHUP, "RDHUP"),
    (select.EPOLLERR, "ERR"),
    (select.EPOLLHUP, "HUP"),
]


def epoll(sock, mask):
    poller = select.epoll()
    poller.register(sock, mask)
    return poller


def told(poller, wait=1.0):
    got = poller.poll(wait)
    return "|".join(name for bit, name in NAMES if got and got[0][1] & bit)


@program
def idle(site):
    client, server = site.pair()
    yield "both", [events(client), events(server)]


@program
def never_connected(site):
    yield "poll", events(site.client.socket())


@to_others
def while_connecting(site):
    client = site.client.socket(blocking=False)
    tried(client.connect, (site.silent, 80))
    yield "poll", events(client, wait=0.3)


@program
def with_bytes(site):
    client, server = site.pair()
    client.send(b"x")
    yield "poll", until(server, "IN")
    server.recv(1)
    yield "after the read", events(server)


@program
def after_a_fin(site):
    client, server = site.pair()
    client.shutdown(socket.SHUT_WR)
    yield "theirs", until(server, "RDHUP")
    yield "ours", events(client)
    yield "without RDHUP in the mask", events(server, select.POLLIN | select.POLLOUT)


@program
def after_bytes_and_a_fin(site):
    client, server = site.pair()
    client.send(b"x")
    client.shutdown(socket.SHUT_WR)
    yield "before the read", until(server, "RDHUP")
    server.recv(1)
    yield "after it", events(server)


@program
def after_two_fins(site):
    client, server = site.pair()
    client.shutdown(socket.SHUT_WR)
    until(server, "RDHUP")
    server.shutdown(socket.SHUT_WR)
    yield "both", [until(client, "HUP"), until(server, "HUP")]


@program
def after_a_reset(site):
    client, server = site.pair()
    abort(client)
    yield "poll", until(server, "HUP")
    yield "with an empty mask", events(server, 0)
    yield "SO_ERROR", error_of(server)
    yield "afterwards", events(server)


@program
def a_full_connection(site):
    client, server = site.pair()
    taken = fill(client)
    yield "full", events(client)
    got = whole(server, taken)
    yield "drained", until(client, "OUT")
    yield "all", len(got) == taken


@program
def edges(site):
    client, server = site.pair()
    poller = epoll(server, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    yield "at first", told(poller)
    yield "nothing new", told(poller, 0.1)
    client.send(b"one")
    yield "bytes", told(poller)
    yield "unread", told(poller, 0.1)
    client.send(b"two")
    yield "more bytes", told(poller)
    server.recv(64)
    yield "read", told(poller, 0.1)
    client.shutdown(socket.SHUT_WR)
    yield "fin", told(poller)


@program
def edges_of_a_connect(site):
    listener, client = site.server.listen(), site.client.socket(blocking=False)
    poller = epoll(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    yield "before", told(poller, 0)
    tried(client.connect, listener.getsockname())
    yield "connected", told(poller)
    yield "nothing new", told(poller, 0.1)
    site.accept(listener).send(b"hello")
    yield "bytes", told(poller)


@program
def edges_of_a_refusal(site):
    client = site.client.socket(blocking=False)
    poller = epoll(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
    told(poller, 0)
    tried(client.connect, site.server.closed_port())
    yield "refused", told(poller)
    yield "SO_ERROR", error_of(client)


@program
def one_shot(site):
    client, server = site.pair()
    poller = epoll(server, select.EPOLLIN | select.EPOLLONESHOT)
    client.send(b"x")
    yield "once", told(poller)
    client.send(b"x")
    yield "not twice", told(poller, 0.1)
    poller.modify(server, select.EPOLLIN | select.EPOLLONESHOT)
    yield "armed again", told(poller)


@program
def by_select(site):
    client, server = site.pair()
    yield "idle", [len(ready) for ready in select.select([server], [server], [server], 0)]
    client.close()
    until(server, "RDHUP")
    yield "closed", [len(ready) for ready in select.select([server], [server], [server], 0)]
    yield "read", received(server)


@program
def a_listener(site):
    listener = site.server.listen()
    yield "nobody", events(listener)
    site.client.socket().connect(listener.getsockname())
    yield "somebody", until(listener, "IN")
    site.accept(listener)
    yield "nobody left", events(listener)


@program
def a_limit_of_time(site):
    client, _ = site.pair()
    start = now()
    yield "poll", events(client, select.POLLIN, wait=0.3)
    yield "took", Took(start)


@program
def a_connection_in_two_pollers(site):
    client, server = site.pair()
    pollers = [epoll(server, select.EPOLLIN), epoll(server, select.EPOLLIN | select.EPOLLET)]
    client.send(b"x")
    yield "both", [told(poller) for poller in pollers]
    yield "only the level", [told(poller, 0.1) for poller in pollers]


run()
