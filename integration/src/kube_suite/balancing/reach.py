"""Connects to every target so often, and prints which servers answered: for each target how often each address did, or an error."""
import collections
import json
import socket
import sys

LIMIT = 2.0


def server(target):
    """The server's own address, which it tells whoever comes."""
    host, port = target.rsplit(":", 1)
    said = b""
    with socket.create_connection((host, int(port)), LIMIT) as stream:
        stream.settimeout(LIMIT)
        while part := stream.recv(4096):
            said += part
    return said.split()[3].decode().rsplit(":", 1)[0]


def reached(target, count):
    found = collections.Counter()
    for _ in range(count):
        try:
            found[server(target)] += 1
        except (OSError, IndexError) as error:
            found["%s" % type(error).__name__] += 1
            if sum(number for name, number in found.items() if not name[0].isdigit()) > 1:
                break
    return found


print(json.dumps({target: reached(target, int(sys.argv[1])) for target in sys.argv[2:]}))
