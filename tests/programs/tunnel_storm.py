"""Opens tunnels and gives each up as soon as it is open, as fast as it can.
Usage: tunnel_storm.py http1|http2|used HOST PORT SECONDS

In HTTP/1.1 each is a connection that is reset after its 101; in HTTP/2 a stream of `CONNECT`, of which a byte is sent
and then CANCEL. A connection that the other side ends is made anew. `used` is a client in HTTP/2 that waits for its
byte to come back before each CANCEL, until it has had more tunnels than its budget has resets, and USED at least. Prints one JSON object: tunnels opened,
connections, and the error codes of GOAWAY."""

import json
import select
import socket
import struct
import sys
import threading
import time

from h2_storm import Connection

KIND, HOST, PORT, SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
AT_ONCE = 32
USED = 800  # at least
# Of the budget for clients outside: deploy/guide/http.md.
BURST, PER_SECOND = 500, 100
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: weft-test\r\n\r\n"


class Tunnels(Connection):
    """A connection with tunnels, of which each is given up as it opens."""

    def __init__(self, used):
        super().__init__(HOST, PORT)
        self.opened, self.used = 0, used

    def ask(self):
        stream, self.stream = self.stream, self.stream + 2
        authority = b"echo:80" if self.used else b"silent:80"
        # :method, :authority
        head = bytes([0x02, 7]) + b"CONNECT" + bytes([0x01, len(authority)]) + authority
        self.unsent += struct.pack(">HBBBI", 0, len(head), 1, 4, stream) + head

    def frame(self, kind, flags, stream, payload):
        super().frame(kind, flags, stream, payload)
        if kind == 1 and not flags & 1:
            self.opened += 1
            self.unsent += struct.pack(">HBBBI", 0, 1, 0, 0, stream) + b"x"
        if kind == (0 if self.used else 1):
            self.reset(stream)
        if kind in (1, 3):
            self.ask()


def http2(end, used=False):
    opened, made, codes, connection = 0, 0, set(), None
    began = time.monotonic()

    def enough():
        """Whether a client that had been charged for each would owe some."""
        return used and opened >= USED and opened > BURST + PER_SECOND * (time.monotonic() - began) + AT_ONCE

    while time.monotonic() < end and not enough():
        if connection is None:
            try:
                connection = Tunnels(used)
            except OSError:
                continue
            made += 1
            for _ in range(AT_ONCE):
                connection.ask()
        select.select([connection], [connection] if connection.unsent else [], [], 0.1)
        before = connection.opened
        connection.work()
        opened += connection.opened - before
        if connection.ended:
            codes |= {connection.goaway} - {None}
            connection.sock.close()
            connection = None
    return dict(opened=opened, connections=made, codes=sorted(codes))


def http1(end):
    counts = []

    def give_up():
        opened = made = 0
        while time.monotonic() < end:
            try:
                sock = socket.create_connection((HOST, PORT), timeout=20)
                made += 1
                sock.sendall(UPGRADE)
                opened += sock.recv(65536).startswith(b"HTTP/1.1 101")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            except OSError:
                pass
        counts.append((opened, made))

    threads = [threading.Thread(target=give_up) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(opened=sum(count[0] for count in counts), connections=sum(count[1] for count in counts), codes=[])


KINDS = {"http1": http1, "http2": http2, "used": lambda end: http2(end, used=True)}
print(json.dumps(KINDS[KIND](time.monotonic() + SECONDS)), flush=True)
