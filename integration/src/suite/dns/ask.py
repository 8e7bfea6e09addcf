"""Asks a resolver by sockets of its own, and tells what comes, as applications' resolvers do it."""
import hashlib
import socket
import struct
import sys
import time

RECORDS = {"A": 1, "AAAA": 28, "TXT": 16, "MX": 15, "SRV": 33, "ANY": 255}


def query(number, name, kind, edns=None, flags=0x0100):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack(">HHHHHH", number, flags, 1, 0, 0, 0 if edns is None else 1)
    message += labels + b"\0" + struct.pack(">HH", RECORDS[kind], 1)
    if edns is not None:
        message += b"\0" + struct.pack(">HHIH", 41, edns, 0x8000, 0)
    return message


def plan(number):
    """What is asked for in place of a number."""
    kind = ["A", "AAAA", "AAAA", "A", "A", "A", "A", "TXT", "MX", "A"][number % 10]
    name = "h%d.example.test" % number
    if number % 10 == 5:
        name = "h%d.broken.test" % number
    elif number % 10 == 8 and number % 20 == 8:
        kind = "SRV"
    elif number % 10 == 9:
        name = ["api.example.com.shop.svc.cluster.local", "ApI.ExAmPlE.tEsT", "h9.exAMPLE.test"][number // 10 % 3]
    edns = [None, 1232, 4096][number // 10 % 3]
    return query(number, name, kind, edns, 0x0110 if number % 7 == 0 else 0x0100)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def udp(address, message, connected, limit=8.0):
    deadline = time.time() + limit
    with socket.socket(family(address), socket.SOCK_DGRAM) as asking:
        if connected:
            asking.connect((address, 53))
            peer = asking.getpeername()[:2]
            assert peer == (address, 53), "the peer is %s" % (peer,)
            asking.send(message)
        else:
            asking.sendto(message, (address, 53))
        while True:
            asking.settimeout(max(deadline - time.time(), 0.001))
            answer, source = asking.recvfrom(65535)
            assert source[:2] == (address, 53), "an answer from %s" % (source,)
            if answer[:2] == message[:2]:
                return answer


def whole(stream, length):
    data = b""
    while len(data) < length:
        part = stream.recv(length - len(data))
        assert part, "the connection ends in the middle"
        data += part
    return data


def tcp(address, messages):
    with socket.create_connection((address, 53), 8) as stream:
        stream.settimeout(8)
        assert stream.getpeername()[:2] == (address, 53)
        stream.sendall(b"".join(struct.pack(">H", len(message)) + message for message in messages))
        answers = {}
        for _ in messages:
            length = struct.unpack(">H", whole(stream, 2))[0]
            answer = whole(stream, length)
            answers[answer[:2]] = answer
        return [answers[message[:2]] for message in messages]


def told(answer):
    return hashlib.sha256(answer).hexdigest()[:16] + " %d %d" % (len(answer), struct.unpack(">H", answer[2:4])[0])


def thousand(address):
    for number in range(1000):
        message = plan(number)
        answer = udp(address, message, number % 2 == 0)
        line = told(answer)
        if answer[2] & 2 or number % 5 == 0:
            line += " tcp " + told(tcp(address, [message])[0])
        print(number, line)
    batch = [plan(number) for number in range(0, 1000, 13)]
    print("batch", *(told(answer) for answer in tcp(address, batch)))


def addresses(answer):
    """The addresses in an answer of one question."""
    at = 12
    while answer[at]:
        at += answer[at] + 1
    at += 5
    found = []
    for _ in range(struct.unpack(">H", answer[6:8])[0]):
        at += 2 if answer[at] & 0xC0 == 0xC0 else answer[at:].index(b"\0") + 1
        kind, _, _, length = struct.unpack(">HHIH", answer[at:at + 10])
        data = answer[at + 10:at + 10 + length]
        if kind in (1, 28):
            found.append(socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data))
        at += 10 + length
    return found


def host(address, name, kind):
    """One name in every way; all have to say the same."""
    message = query(4711, name, kind)
    answers = [udp(address, message, True), udp(address, message, False), tcp(address, [message])[0]]
    found = {(answer[3] & 15, tuple(sorted(addresses(answer)))) for answer in answers}
    assert len(found) == 1, found
    code, known = found.pop()
    print(code, *known)


def truncated(address, name):
    """By UDP, and if that is cut short, by TCP: how many addresses there are."""
    message = query(4712, name, "A")
    short = udp(address, message, True)[2] & 2
    print("truncated" if short else "whole", len(addresses(tcp(address, [message])[0])))


def mapped(address, name):
    """An IPv6 socket that asks an IPv4 resolver, as Java's do."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asking:
        asking.settimeout(8)
        message = query(7, name, "A")
        asking.sendto(message, ("::ffff:" + address, 53))
        answer, source = asking.recvfrom(65535)
        assert source[:2] == ("::ffff:" + address, 53), source
        print(answer[3] & 15, *addresses(answer))


def steady(address, name, seconds):
    """One question after another, each with a second at most; a line for each that changes the outcome."""
    end, last, longest = time.time() + seconds, None, 0.0
    while time.time() < end:
        start, number = time.time(), int(time.time() * 1e6) & 0xFFFF
        try:
            answer = udp(address, query(number, name, "A"), number % 2 == 0, 1.0)
            outcome = "%d %s" % (answer[3] & 15, " ".join(addresses(answer)))
        except (OSError, AssertionError) as error:
            outcome = "failed: %s" % error
        if outcome.startswith("failed"):
            longest += time.time() - start
        if outcome != last:
            print(outcome, flush=True)
            last = outcome
        time.sleep(0.01)
    print("lost %.1f" % longest, flush=True)


def both(first, second, name):
    """One socket asks two resolvers at once, as musl's does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(8)
        for address in (first, second):
            asking.sendto(query(9, name, "A"), (address, 53))
        print(*sorted(asking.recvfrom(65535)[1][0] for _ in range(2)))


def stranger(address, ports, name):
    """Asks the agent's own sockets in another pod."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        for port in ports.split(","):
            asking.sendto(query(1, name, "A"), (address, int(port)))
        try:
            print("answered", asking.recvfrom(65535))
        except TimeoutError:
            print("silence")


{"thousand": thousand, "stranger": stranger, "host": host, "mapped": mapped, "both": both, "truncated": truncated,
 "steady": lambda address, name, seconds: steady(address, name, float(seconds))}[sys.argv[1]](*sys.argv[2:])
