"""Servers of one pod: gRPC, WebSocket, TLS. Says `ready` once all of them listen."""

import asyncio
import ssl
import sys
from concurrent import futures

import grpc
import websockets

ip, certificate, key = sys.argv[1:]


def unary(request, context):
    return request.upper()


def both_ways(requests, context):
    for request in requests:
        yield request.upper()
    context.set_trailing_metadata((("sum", "1"),))


class Methods(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method.startswith("/test.Echo/"):
            if call.method.endswith("Both"):
                return grpc.stream_stream_rpc_method_handler(both_ways)
            return grpc.unary_unary_rpc_method_handler(unary)


grpc_server = grpc.server(futures.ThreadPoolExecutor(8))
grpc_server.add_generic_rpc_handlers((Methods(),))
assert grpc_server.add_insecure_port(f"{ip}:8092") == 8092
grpc_server.start()


async def echo(socket, *_):
    async for message in socket:
        await socket.send(message)


async def greet(_, writer):
    writer.write(b"220 I speak first\r\n")
    await writer.drain()
    writer.close()


async def secret(_, writer):
    writer.write(b"over TLS\n")
    await writer.drain()
    writer.close()


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with websockets.serve(echo, ip, 8093):
        await asyncio.start_server(greet, ip, 8094)
        await asyncio.start_server(secret, ip, 8095, ssl=context)
        print("ready", flush=True)
        await asyncio.Future()


asyncio.run(main())
