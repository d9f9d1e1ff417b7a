"""CONNECT in HTTP/1.1 and in HTTP/2 (PyPI h2) to connect/server.go. Whatever the answer, it then sends a request
that names a caller: only a tunnel may carry it. Usage: connect_client.py HOST PORT"""

import socket
import sys

from checks import equal, run
from websocket_h2 import Bytes, Client

HOST, PORT = sys.argv[1], int(sys.argv[2])
FORGED = b"GET /forged HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: forged\r\n\r\n"
REFUSED = ("502", "upgrade-failed")
EXPECTED = {"tunnel": ("200", None), "empty": REFUSED, "reset": REFUSED, "content": REFUSED,
            "switch": ("502", "upstream-protocol-error"), "other": ("403", None)}


def http1(target):
    with socket.create_connection((HOST, PORT), timeout=20) as sock:
        sock.sendall(f"CONNECT {target}:80 HTTP/1.1\r\nHost: {target}:80\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            part = sock.recv(65536)
            if not part:
                raise AssertionError(f"closed after {data!r}")
            data += part
        head, rest = data.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        said = lines[0].split(" ")[1], fields.get("weft-reason")
        if said[0] == "200":
            sock.sendall(FORGED)
            while len(rest) < len(FORGED):
                rest += sock.recv(65536)
            equal(rest, FORGED)
        else:
            # An ordinary request now, of which the mesh removes the caller.
            sock.sendall(FORGED)
            sock.recv(65536)
        return said


client = Client(HOST, PORT)


def http2(target):
    stream = Bytes()
    number = client.request([(":method", "CONNECT"), (":authority", f"{target}:80")], stream, False)
    said = stream.head[":status"], stream.head.get("weft-reason")
    if said[0] == "200":
        client.send(number, FORGED)
        client.wait(lambda: stream.data == FORGED)
        client.send(number, b"", end=True)
        client.wait(lambda: stream.over)
    equal(client.get("/").head[":status"], "200")
    return said


def check(way, target):
    return lambda: equal(way(target), EXPECTED[target])


run([(f"{way.__name__} {target}", check(way, target)) for way in [http1, http2] for target in EXPECTED])
