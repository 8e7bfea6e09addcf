"""A network that loses everything for a while, or for good: how long until either end knows."""

import socket
import struct
import time
from socket import IPPROTO_TCP, SOL_SOCKET

from program import Took, error_of, events, now, program, received, run, settle, tried, until

TCP_USER_TIMEOUT = 18


def severed(function):
    """A program whose network is whole again afterwards."""

    def whole_again(site):
        try:
            yield from function(site)
        finally:
            site.mend()

    whole_again.__name__ = function.__name__
    return program(whole_again)


def keep_alive(sock, idle, interval, count):
    sock.setsockopt(SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(IPPROTO_TCP, socket.TCP_KEEPCNT, count)


@severed
def for_a_second_while_idle(site):
    client, server = site.pair()
    site.cut()
    time.sleep(1)
    site.mend()
    client.send(b"still here")
    yield "read", received(server)


@severed
def for_a_second_under_a_write(site):
    client, server = site.pair()
    site.cut()
    client.send(b"late")
    time.sleep(1)
    site.mend()
    yield "read", received(server)
    yield "open", events(client)


@severed
def a_receive_timeout_runs(site):
    client, _ = site.pair()
    client.setsockopt(SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
    site.cut()
    client.send(b"question")
    start = now()
    yield "recv", received(client)
    yield "took", Took(start)


@severed
def a_client_with_keepalive(site):
    client, _ = site.pair()
    keep_alive(client, 1, 1, 2)
    settle()
    site.cut()
    start = now()
    yield "recv", received(client)
    yield "took", Took(start)


@severed
def a_server_with_keepalive(site):
    _, server = site.pair()
    keep_alive(server, 1, 1, 2)
    settle()
    site.cut()
    start = now()
    yield "recv", received(server)
    yield "took", Took(start)


@severed
def a_user_timeout(site):
    client, _ = site.pair()
    client.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, 2000)
    settle()
    site.cut()
    client.send(b"unheard")
    start = now()
    yield "recv", received(client)
    yield "took", Took(start)


@severed
def a_connect_after_others(site):
    listener = site.server.listen()
    first = site.client.socket()
    first.connect(listener.getsockname())
    site.accept(listener)
    first.close()
    settle()
    site.cut()
    client, start = site.client.socket(), now()
    client.setsockopt(IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    yield "connect", tried(client.connect, listener.getsockname())
    yield "took", Took(start)


@severed
def a_connect_that_is_in_time_after_all(site):
    listener, client = site.server.listen(), site.client.socket(blocking=False)
    site.cut()
    tried(client.connect, listener.getsockname())
    yield "at first", events(client, wait=0.5)
    site.mend()
    yield "later", until(client, "OUT", limit=4)
    client.send(b"in time")
    yield "read", received(site.accept(listener))


@severed
def connects_after_it_is_over(site):
    listener = site.server.listen()
    site.cut()
    client = site.client.socket(blocking=False)
    tried(client.connect, listener.getsockname())
    time.sleep(0.5)
    client.close()
    site.mend()
    start = now()
    yield "connect", [tried(site.client.socket().connect, listener.getsockname()) for _ in range(3)]
    yield "took", Took(start)


run()
