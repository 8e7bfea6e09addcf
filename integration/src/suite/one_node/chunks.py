"""Sends bytes to an echo server in pieces of random lengths, reads what comes back in others, and compares checksums.

chunks.py ADDRESS PORT MEGABYTES SEED
"""

import hashlib
import random
import socket
import sys
import threading
import time


def one(address, port, length, seed):
    rand = random.Random(seed)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as sock:
        if rand.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 << rand.randrange(6))
        sock.settimeout(60)
        sock.connect((address, port))
        sent, got = hashlib.sha256(), hashlib.sha256()

        def send():
            left = length
            pieces = random.Random(seed + 1)
            block = pieces.randbytes(1 << 20)
            while left:
                size = min(left, pieces.choice([1, 7, 1448, 16384, 16385, 65536, 131072, pieces.randrange(1, 1 << 20)]))
                start = pieces.randrange(len(block) - size + 1)
                sock.sendall(block[start : start + size])
                sent.update(block[start : start + size])
                left -= size
                if pieces.random() < 0.02:
                    time.sleep(pieces.random() / 100)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        count = 0
        while piece := sock.recv(rand.choice([1, 100, 4096, 65536, 1 << 20])):
            got.update(piece)
            count += len(piece)
            if rand.random() < 0.01:
                time.sleep(rand.random() / 50)
        sender.join()
        assert count == length, f"{count} of {length} bytes came back"
        assert got.digest() == sent.digest(), "other bytes came back"


def main():
    address, port, megabytes, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rand = random.Random(seed)
    left = megabytes << 20
    threads, failed = [], []

    def run(length, seed):
        try:
            one(address, port, length, seed)
        except Exception as error:
            failed.append(f"seed {seed}, {length} bytes: {error!r}")

    while left:
        length = min(left, rand.randrange(1, 64 << 20))
        left -= length
        threads.append(threading.Thread(target=run, args=(length, rand.randrange(1 << 30))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit("\n".join(failed) or 0)


main()
