"""What the programs of this suite share: the two pods, what a program tells, and the run of all programs of one topic.

A socket belongs to the network namespace that it was made in, whoever holds it. So one thread plays both ends, in the order
in which the text stands, and every call is one that an application makes. A program yields what it saw as (name, value):
`Took` and `About` are compared with a tolerance, all else must be equal.
"""

import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
# Longer than any program takes that does not hang.
LIMIT = 8
# For what has no event of its own to wait for: far more than it takes through two agents.
SETTLED = 0.15

POLL_NAMES = [
    (select.POLLIN, "IN"),
    (select.POLLPRI, "PRI"),
    (select.POLLOUT, "OUT"),
    (select.POLLRDHUP, "RDHUP"),
    (select.POLLERR, "ERR"),
    (select.POLLHUP, "HUP"),
]
STATES = "- ESTABLISHED SYN_SENT SYN_RECV FIN_WAIT1 FIN_WAIT2 TIME_WAIT CLOSE CLOSE_WAIT LAST_ACK LISTEN CLOSING".split()

PROGRAMS, TO_OTHERS = [], set()


def program(function):
    """Marks a function as one of the topic's programs."""
    PROGRAMS.append(function)
    return function


def to_others(function):
    """Marks a program that dials neither pod, but addresses at which there is none."""
    TO_OTHERS.add(function.__name__)
    return program(function)


class Took:
    """Milliseconds since a moment."""

    def __init__(self, start):
        self.value = {"ms": round((time.monotonic() - start) * 1000)}


class About:
    """An amount that only has to be of the same size."""

    def __init__(self, amount):
        self.value = {"about": amount}


class Hung(Exception):
    """A program takes too long."""


class Pod:
    """One end: where its sockets are made, and its addresses."""

    def __init__(self, site, name, netns, v4, v6):
        self.site, self.name, self.v4, self.v6 = site, name, v4, v6
        self.netns = os.open(netns, os.O_RDONLY)

    def socket(self, family=socket.AF_INET, blocking=True):
        enter(self.netns)
        try:
            made = socket.socket(family, socket.SOCK_STREAM)
        finally:
            enter(self.site.home)
        made.setblocking(blocking)
        self.site.opened.append(made)
        return made

    def listen(self, host=None, port=0, backlog=64, options=()):
        """A listener on the pod's IPv4 address, or on `host`."""
        host = self.v4 if host is None else host
        listener = self.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        for option in options:
            listener.setsockopt(*option)
        listener.bind((host, port))
        listener.listen(backlog)
        return listener

    def closed_port(self, host=None):
        """An address at which nobody listens."""
        listener = self.listen(host)
        address = listener.getsockname()
        listener.close()
        return address

    def read(self, path):
        """A file as it is in the pod's network namespace."""
        enter(self.netns)
        try:
            with open(path, encoding="ascii") as file:
                return file.read()
        finally:
            enter(self.site.home)


class Site:
    """Both ends, and what lies between them."""

    def __init__(self, told):
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.opened = []
        self.client = Pod(self, "client", *told["client"])
        self.server = Pod(self, "server", *told["server"])
        # Addresses of pods that are not there: packets vanish, or are answered by an ICMP message.
        self.silent, self.unreachable = told["silent"], told["unreachable"]
        self.router, self.table = told["router"], told["table"]

    def accept(self, listener):
        """The next connection of a listener, without its address."""
        accepted, _ = listener.accept()
        self.opened.append(accepted)
        return accepted

    def pair(self, family=socket.AF_INET):
        """A connection: the client's socket and the server's."""
        listener = self.server.listen(self.server.v6 if family == socket.AF_INET6 else None)
        client = self.client.socket(family)
        client.connect(listener.getsockname())
        server = self.accept(listener)
        listener.close()
        return client, server

    def whom(self, address):
        """Whose address that is, in which form; without the port."""
        names = {self.client.v4: "client", self.server.v4: "server", self.client.v6: "client/6"}
        names[self.server.v6] = "server/6"
        plain = address[0].removeprefix("::ffff:")
        return names.get(plain, plain) + ("/mapped" if plain != address[0] else "")

    def cut(self):
        """Drops all packets between both pods, until `mend`."""
        ends = [(self.client.v4, self.server.v4), (self.server.v4, self.client.v4)]
        rules = [f"add table ip {self.table}", f"add chain ip {self.table} cut {{ type filter hook forward priority 0 ; }}"]
        rules += [f"add rule ip {self.table} cut ip saddr {a} ip daddr {b} drop" for a, b in ends]
        self.nft("\n".join(rules))

    def mend(self):
        self.nft(f"add table ip {self.table}\ndelete table ip {self.table}")

    def nft(self, rules):
        command = ["nsenter", f"--net={self.router}", "nft", "-f", "-"]
        subprocess.run(command, input=rules, text=True, check=True, timeout=5)

    def close(self):
        for each in self.opened:
            each.close()
        self.opened.clear()


def enter(netns):
    if LIBC.setns(netns, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def tried(call, *args):
    """What a call answers, or the name of its error."""
    try:
        answer = call(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "ok" if answer is None else answer


def received(sock, size=65536, flags=0):
    """What one read brings, as text, or the name of its error."""
    answer = tried(sock.recv, size, flags)
    return answer.decode() if isinstance(answer, bytes) else answer


def whole(sock, size=None):
    """All that comes until EOF, or until there are `size` bytes."""
    parts, have = [], 0
    while size is None or have < size:
        part = sock.recv(1 << 18)
        if not part:
            break
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def error_of(sock):
    """SO_ERROR, which reading clears."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(number, number)


def events(sock, mask=0x203F, wait=0.0):
    """What poll(2) tells of a socket, waiting for anything at most so many seconds."""
    poller = select.poll()
    poller.register(sock, mask)
    told = poller.poll(wait * 1000)
    return "|".join(name for bit, name in POLL_NAMES if told and told[0][1] & bit)


def until(sock, *names, limit=2.0):
    """What poll(2) tells once it tells all of `names`, or after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        told = events(sock)
        if all(name in told.split("|") for name in names) or time.monotonic() > end:
            return told
        time.sleep(0.005)


def state(sock):
    """The connection's state, as TCP_INFO has it."""
    return STATES[sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]]


def linger(sock, seconds):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))


def abort(sock):
    """Closes with a RST."""
    linger(sock, 0)
    sock.close()


def settle():
    time.sleep(SETTLED)


def now():
    return time.monotonic()


def fill(sock, quiet=0.6):
    """Writes until the socket has taken nothing for so many seconds; answers how much it took."""
    sock.setblocking(False)
    total, last = 0, now()
    while now() - last < quiet:
        try:
            total += sock.send(bytes(65536))
            last = now()
        except BlockingIOError:
            time.sleep(0.01)
    return total


def hang(*_):
    raise Hung


def see(site, function):
    saw = []
    signal.alarm(LIMIT)
    try:
        for name, value in function(site):
            saw.append([name, value.value if isinstance(value, (Took, About)) else value])
    except Hung:
        saw.append(["ended", f"hangs for {LIMIT} s"])
    except Exception as error:  # What a program did not expect is what it saw, too.
        saw.append(["ended", f"{type(error).__name__}: {error}"])
    finally:
        signal.alarm(0)
        site.close()
    return saw


def run():
    """Runs the topic's programs whose names contain the second argument; the first one describes the site."""
    signal.signal(signal.SIGALRM, hang)
    site = Site(json.loads(sys.argv[1]))
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    others = json.loads(sys.argv[1])["others"]
    for function in PROGRAMS:
        if wanted in function.__name__ and (others or function.__name__ not in TO_OTHERS):
            start = now()
            saw = see(site, function)
            print(json.dumps({"program": function.__name__, "saw": saw, "took": Took(start).value["ms"]}), flush=True)
