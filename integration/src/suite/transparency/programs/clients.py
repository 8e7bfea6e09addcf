"""What Python's own clients see: HTTP, mail, a name with addresses of both families, asyncio."""

import asyncio
import http.client
import smtplib
import socket
import sys
import urllib.request

server, server6, silent, http_port, smtp_port, closed = sys.argv[1:7]


def tell(name, call, *args):
    try:
        print(name, call(*args))
    except Exception as error:
        print(name, type(error).__name__, getattr(error, "errno", None))


def request():
    with urllib.request.urlopen(f"http://{server}:{http_port}/python", b"x" * 200_000, timeout=5) as answer:
        return answer.status, answer.read()


def kept_alive():
    connection = http.client.HTTPConnection(server, int(http_port), timeout=5)
    answers = []
    for _ in range(5):
        connection.request("GET", "/again")
        answers.append(connection.getresponse().read())
    return answers


def mail():
    with smtplib.SMTP(server, int(smtp_port), timeout=5) as smtp:
        smtp.ehlo("client.invalid")
        smtp.mail("a@client.invalid")
        smtp.rcpt("b@mail.invalid")
        return smtp.data("Subject: long\n\n" + "line\n" * 20_000)


def fallback(port):
    both = [(socket.AF_INET6, (server6, int(port))), (socket.AF_INET, (server, int(port)))]
    socket.getaddrinfo = lambda *_, **__: [(family, socket.SOCK_STREAM, 6, "", address) for family, address in both]
    return socket.create_connection(("both.invalid", port), timeout=3).getpeername()


async def streams():
    reader, writer = await asyncio.open_connection(server, int(http_port))
    writer.write(b"GET /asyncio HTTP/1.0\r\n\r\n")
    await writer.drain()
    answer = await reader.read()
    return answer.split(b"\r\n")[0]


async def in_vain():
    await asyncio.wait_for(asyncio.open_connection(silent, 80), 0.7)


tell("request", request)
tell("kept alive", kept_alive)
tell("mail", mail)
tell("asyncio", lambda: asyncio.run(streams()))
tell("asyncio in vain", lambda: asyncio.run(in_vain()))
tell("refused", socket.create_connection, (server, int(closed)), 3)
tell("in vain", socket.create_connection, (silent, 80), 0.7)
tell("fallback", fallback, http_port)
