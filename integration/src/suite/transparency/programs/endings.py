"""shutdown(2), close(2), resets, linger: how either end learns of them."""

import socket
import threading
from socket import SHUT_RD, SHUT_RDWR, SHUT_WR

from program import Took, abort, error_of, events, fill, linger, now, program, received, run, settle, state, tried, until, whole


@program
def the_client_half_closes(site):
    client, server = site.pair()
    client.send(b"question")
    client.shutdown(SHUT_WR)
    yield "the server reads", whole(server).decode()
    server.send(b"answer")
    yield "the client reads", received(client)
    server.close()
    yield "and the end", received(client)


@program
def the_server_half_closes(site):
    client, server = site.pair()
    server.shutdown(SHUT_WR)
    yield "the client reads", received(client)
    client.send(b"on and on")
    yield "the server reads", received(server)
    client.close()
    yield "and the end", received(server)


@program
def long_after_the_half_close(site):
    client, server = site.pair()
    client.shutdown(SHUT_WR)
    yield "the server reads", received(server)
    settle()
    threading.Thread(target=lambda: (server.sendall(bytes(2_000_000)), server.close()), daemon=True).start()
    yield "the client reads", len(whole(client))


@program
def both_half_close(site):
    client, server = site.pair()
    client.shutdown(SHUT_WR)
    server.shutdown(SHUT_WR)
    yield "read", [received(client), received(server)]
    yield "poll", [until(client, "HUP"), until(server, "HUP")]


@program
def a_fin_while_the_other_writes(site):
    client, server = site.pair()
    client.shutdown(SHUT_WR)
    until(server, "RDHUP")
    yield "state", state(server)
    yield "send", [tried(server.send, b"still ") for _ in range(3)]
    server.shutdown(SHUT_WR)
    yield "the client reads", whole(client).decode()


@program
def a_client_that_closes(site):
    client, server = site.pair()
    client.close()
    yield "poll", until(server, "RDHUP")
    yield "state", state(server)
    yield "first send", tried(server.send, b"x")
    yield "poll", until(server, "HUP")
    yield "recv", received(server)
    yield "second send", tried(server.send, b"x")


@program
def a_server_that_closes(site):
    client, server = site.pair()
    server.close()
    yield "poll", until(client, "RDHUP")
    yield "state", state(client)
    yield "first send", tried(client.send, b"x")
    yield "poll", until(client, "HUP")
    yield "recv", received(client)
    yield "second send", tried(client.send, b"x")


@program
def a_client_that_closes_with_bytes_unread(site):
    client, server = site.pair()
    server.send(b"unread")
    until(client, "IN")
    client.close()
    yield "poll", until(server, "HUP")
    yield "recv", [received(server), received(server)]
    yield "send", tried(server.send, b"x")


@program
def a_server_that_closes_with_bytes_unread(site):
    client, server = site.pair()
    client.send(b"unread")
    until(server, "IN")
    server.close()
    yield "poll", until(client, "HUP")
    yield "recv", [received(client), received(client)]
    yield "send", tried(client.send, b"x")


@program
def a_client_that_resets(site):
    client, server = site.pair()
    abort(client)
    yield "poll", until(server, "HUP")
    yield "SO_ERROR", [error_of(server), error_of(server)]
    yield "recv", received(server)


@program
def a_server_that_resets(site):
    client, server = site.pair()
    abort(server)
    yield "poll", until(client, "HUP")
    yield "recv", [received(client), received(client)]
    yield "getpeername", tried(client.getpeername)


@program
def a_reset_after_words(site):
    client, server = site.pair()
    client.send(b"last words")
    until(server, "IN")
    settle()
    abort(client)
    until(server, "HUP")
    yield "recv", [received(server), received(server), received(server)]


@program
def a_reset_while_nobody_reads(site):
    client, server = site.pair()
    client.sendall(bytes(100_000))
    until(server, "IN")
    settle()
    start = now()
    abort(client)
    yield "poll", until(server, "HUP")
    yield "took", Took(start)
    yield "send", tried(server.send, b"x")


@program
def a_reset_of_a_full_connection(site):
    client, server = site.pair()
    fill(client)
    start = now()
    abort(client)
    yield "poll", until(server, "HUP")
    yield "took", Took(start)


@program
def a_reset_under_a_write(site):
    client, server = site.pair()
    fill(client)
    client.setblocking(True)
    threading.Timer(0.3, abort, [server]).start()
    start = now()
    yield "send", tried(client.sendall, bytes(10_000_000))
    yield "took", Took(start)
    yield "again", tried(client.send, b"x")


@program
def a_reset_under_a_read(site):
    client, server = site.pair()
    threading.Timer(0.3, abort, [client]).start()
    start = now()
    yield "recv", received(server)
    yield "took", Took(start)


@program
def a_reset_after_our_fin(site):
    client, server = site.pair()
    server.shutdown(SHUT_WR)
    until(client, "RDHUP")
    abort(client)
    yield "poll", until(server, "HUP")
    yield "recv", received(server)


@program
def a_reset_after_their_fin(site):
    client, server = site.pair()
    client.shutdown(SHUT_WR)
    until(server, "RDHUP")
    abort(client)
    yield "poll", until(server, "HUP")
    yield "send", tried(server.send, b"x")


@program
def words_before_a_close(site):
    client, server = site.pair()
    lines = b"".join(b"line %d\n" % number for number in range(2000))
    client.sendall(lines)
    client.close()
    settle()
    yield "all there", whole(server) == lines


@program
def a_lingering_close(site):
    client, server = site.pair()
    linger(client, 3)
    client.send(b"last words")
    start = now()
    client.close()
    yield "took", Took(start)
    yield "the server reads", whole(server).decode()


@program
def a_lingering_close_to_one_that_does_not_read(site):
    client, server = site.pair()
    fill(client)
    client.setblocking(True)
    linger(client, 1)
    start = now()
    client.close()
    yield "took", Took(start)


@program
def reading_shut_down(site):
    client, server = site.pair()
    client.shutdown(SHUT_RD)
    yield "recv", received(client)
    yield "the other sends", tried(server.send, b"unheard")
    settle()
    yield "poll", events(client)
    client.send(b"heard")
    yield "the other reads", received(server)


@program
def both_ways_shut_down(site):
    client, server = site.pair()
    client.shutdown(SHUT_RDWR)
    yield "recv", received(client)
    yield "send", tried(client.send, b"x")
    yield "the other reads", received(server)
    yield "the other", until(server, "RDHUP")
    server.close()
    settle()
    yield "poll", events(client)


@program
def shut_down_twice(site):
    client, server = site.pair()
    yield "shutdown", [tried(client.shutdown, SHUT_WR), tried(client.shutdown, SHUT_WR)]
    server.close()
    until(client, "HUP")
    yield "after the end", tried(client.shutdown, SHUT_RDWR)
    yield "unconnected", tried(site.client.socket().shutdown, SHUT_WR)


@program
def not_connected(site):
    client = site.client.socket()
    yield "recv", received(client)
    yield "send", tried(client.send, b"x")
    yield "getpeername", tried(client.getpeername)


@program
def sent_after_our_own_fin(site):
    client, server = site.pair()
    client.shutdown(SHUT_WR)
    yield "send", tried(client.send, b"x")
    yield "state", (settle(), state(client))[1]
    server.send(b"one more")
    yield "recv", received(client)


@program
def a_process_that_is_killed(site):
    client, server = site.pair()
    client.send(b"words")
    # The kernel closes what a killed process had, as this does: with nothing unread it is a FIN.
    client.close()
    yield "recv", [received(server), received(server)]


run()
