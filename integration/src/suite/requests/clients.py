"""Clients of the servers beside this: each says on a line of its own what it saw."""

import asyncio
import http.client
import json
import socket
import ssl
import sys

import grpc
import websockets

what, ip = sys.argv[1:3]


def told(**saw):
    print(json.dumps(saw), flush=True)


def code(call):
    try:
        return call()
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"


def grpc_calls():
    with grpc.insecure_channel(f"{ip}:8092") as channel:
        echo = channel.unary_unary("/test.Echo/Upper")
        both = channel.stream_stream("/test.Echo/Both")
        admin = channel.unary_unary("/test.Echo/Admin")
        told(unary=code(lambda: echo(b"hello", timeout=10).decode()))
        told(denied=code(lambda: admin(b"x", timeout=10).decode()))
        call = both(iter([b"a", b"b"]), timeout=10)
        told(both=[answer.decode() for answer in call], trailers=dict(call.trailing_metadata()).get("sum"))
        big = b"x" * 3_000_000
        told(big=code(lambda: len(echo(big, timeout=20))))


async def websocket():
    async with websockets.connect(f"ws://{ip}:8093/chat") as socket:
        await socket.send("hello")
        told(echo=await socket.recv())
        await socket.send("x" * 500_000)
        told(big=len(await socket.recv()))
    try:
        async with websockets.connect(f"ws://{ip}:8093/admin"):
            told(denied=None)
    except websockets.exceptions.InvalidStatusCode as error:
        told(denied=error.status_code)


def keep_alive():
    """One connection; a line on standard input before each request."""
    connection = http.client.HTTPConnection(ip, 8090, timeout=10)
    connection.connect()
    port = connection.sock.getsockname()[1]
    for path in sys.stdin:
        connection.request("GET", path.strip())
        answer = connection.getresponse()
        answer.read()
        told(status=answer.status, same=connection.sock is not None and connection.sock.getsockname()[1] == port)


def greeting():
    # A refusal may come while it connects or thereafter.
    try:
        with socket.create_connection((ip, 8094), timeout=10) as plain:
            told(greeting=plain.recv(100).decode())
    except OSError as error:
        told(greeting=type(error).__name__)


def tls():
    context = ssl._create_unverified_context()
    for name in sys.argv[3:]:
        try:
            with socket.create_connection((ip, 8095), timeout=10) as plain:
                with context.wrap_socket(plain, server_hostname=name) as secured:
                    told(name=name, got=secured.recv(100).decode())
        except OSError as error:
            told(name=name, got=type(error).__name__)


if what == "websocket":
    asyncio.run(websocket())
else:
    {"grpc": grpc_calls, "keep-alive": keep_alive, "greeting": greeting, "tls": tls}[what]()
