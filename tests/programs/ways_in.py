"""Asks head_echo.py in ways that programs and attackers do, in HTTP/1 byte by byte and in HTTP/2 with PyPI h2,
which checks nothing here. Prints one JSON object: name -> {status, phrase, reason, text, head}, where `head` is what
the server was sent, and the status of a stream that is reset is `reset`, of a connection that ends `ended`.
Usage: ways_in.py HOST PORT requests|own|expect"""

import json
import re
import socket
import sys

import h2.config
import h2.connection
import h2.events

HOST, PORT, WHAT = sys.argv[1], int(sys.argv[2]), sys.argv[3]
UPGRADE = b"Connection: upgrade\r\nUpgrade: echo\r\n"
MINE = (b"weft-deadline: 0\r\nweft-check: connection\r\nweft-expect: 5\r\nweft-app-protocol: h2\r\n"
        b"weft-target-form: absolute\r\nweft-hops: 9\r\nweft-else: 1\r\nX-Forwarded-Client-Cert: me\r\n")


def full(more=b""):
    """Fields of a head of 65,536 bytes, with its request line and the empty line."""
    rest = b"Host: web\r\n" + more
    around = len(b"GET / HTTP/1.1\r\n" + b"x-full: \r\n" + rest + b"\r\n")
    return b"x-full: " + b"v" * (65536 - around) + b"\r\n" + rest


def field(head, name):
    found = re.search(rb"\r\n" + name + rb": *([^\r]*)", head, re.I)
    return found[1].decode() if found else ""


def http1(data):
    """Sends bytes, and reads a response."""
    sock = socket.create_connection((HOST, PORT), timeout=20)
    sock.sendall(data)
    received = b""
    try:
        while b"\r\n\r\n" not in received:
            more = sock.recv(65536)
            if not more:
                return {"status": "ended"}
            received += more
        head, body = received.split(b"\r\n\r\n", 1)
        length = int(field(head, b"content-length") or 0)
        while len(body) < length:
            body += sock.recv(65536)
    except OSError:
        return {"status": "ended"}
    finally:
        sock.close()
    status, phrase = head.split(b"\r\n")[0].decode().split(" ", 2)[1:]
    return answer(status, field(head, b"weft-reason"), body) | {"phrase": phrase}


def answer(status, reason, body):
    body = body.decode("latin-1")
    if status == "200":
        return {"status": status, "reason": reason, "head": body}
    return {"status": status, "reason": reason, "text": body}


def http2(fields, method=b"GET", path=b"/", authority=b"web"):
    """Sends a request, and reads a response."""
    sock = socket.create_connection((HOST, PORT), timeout=20)
    config = h2.config.H2Configuration(
        client_side=True, header_encoding=None, validate_outbound_headers=False,
        normalize_outbound_headers=False, validate_inbound_headers=False)
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", path)]
    if authority is not None:
        pseudo.insert(2, (b":authority", authority))
    connection.send_headers(1, pseudo + fields, end_stream=True)
    sock.sendall(connection.data_to_send())
    head, body = {}, b""
    try:
        while True:
            data = sock.recv(65536)
            if not data:
                return {"status": "ended"}
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    head = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamReset):
                    return {"status": "reset"}
                elif isinstance(event, h2.events.StreamEnded):
                    return answer(head[b":status"].decode(), head.get(b"weft-reason", b"").decode(), body)
            sock.sendall(connection.data_to_send())
    except OSError:
        return {"status": "ended"}
    finally:
        sock.close()


def get(target=b"/", fields=b"Host: web\r\n", version=b"1.1", method=b"GET"):
    return http1(method + b" " + target + b" HTTP/" + version + b"\r\n" + fields + b"\r\n")


def many(count):
    return [(b"x-%d" % number, b"1") for number in range(count)]


def lines(fields):
    return b"".join(name + b": " + value + b"\r\n" for name, value in fields)


REQUESTS = {
    "plain": lambda: get(),
    "1.0 no host": lambda: get(fields=b"", version=b"1.0"),
    "empty host": lambda: get(fields=b"Host:\r\n"),
    "port alone": lambda: get(fields=b"Host: :80\r\n"),
    "encoded host": lambda: get(fields=b"Host: a%20b\r\n"),
    "longest host": lambda: get(fields=b"Host: " + b"a" * 261 + b"\r\n"),
    "long host": lambda: get(fields=b"Host: " + b"a" * 262 + b"\r\n"),
    "long absolute": lambda: get(target=b"http://" + b"a" * 262 + b"/"),
    "longest method": lambda: get(method=b"M" * 64),
    "long method": lambda: get(method=b"M" * 65),
    "1.0 upgrade": lambda: get(fields=b"Host: web\r\n" + UPGRADE, version=b"1.0"),
    "1.1 upgrade": lambda: get(fields=b"Host: web\r\n" + UPGRADE),
    "256 fields": lambda: get(fields=b"Host: web\r\n" + lines(many(255))),
    "257 fields": lambda: get(fields=b"Host: web\r\n" + lines(many(256))),
    "full head": lambda: get(fields=full()),
    "full upgrade": lambda: get(fields=full(UPGRADE)),
    "star": lambda: get(target=b"*"),
    "fragment": lambda: get(target=b"/a#b"),
    "quote in a path": lambda: get(target=b"/a\"b|{}[]\\^'%zz"),
    "quote in a query": lambda: get(target=b"/a?\"b"),
    "backtick in a path": lambda: get(target=b"/`a"),
    "backtick in a query": lambda: get(target=b"/?`a"),
    "less in a path": lambda: get(target=b"/<a"),
    "greater in a query": lambda: get(target=b"/?>a"),
    "utf-8": lambda: get(target="/ä?€".encode()),
    "latin-1": lambda: get(target=b"/\xe4"),
    "h2 plain": lambda: http2([]),
    "h2 no authority": lambda: http2([], authority=None),
    "h2 host": lambda: http2([(b"host", b"other")], authority=None),
    "h2 empty host": lambda: http2([(b"host", b"")], authority=None),
    "h2 two hosts": lambda: http2([(b"host", b"a"), (b"host", b"b")], authority=None),
    "h2 long host": lambda: http2([(b"host", b"a" * 262)], authority=None),
    "h2 long authority": lambda: http2([], authority=b"a" * 262),
    "h2 star": lambda: http2([], path=b"*"),
    "h2 PRI": lambda: http2([], method=b"PRI", path=b"*"),
    "h2 OPTIONS": lambda: http2([], method=b"OPTIONS", path=b"*"),
    "h2 query alone": lambda: http2([], path=b"?a"),
    "h2 fragment": lambda: http2([], path=b"/a#b"),
    "h2 256 fields": lambda: http2(many(256)),
    "h2 257 fields": lambda: http2(many(257)),
    "h2 cookies": lambda: http2([(b"cookie", b"a%d=1" % number) for number in range(300)]),
    "h2 quote in a path": lambda: http2([], path=b"/a\"b|{}[]\\^'%zz"),
    "h2 quote in a query": lambda: http2([], path=b"/a?\"b"),
    "h2 backtick in a path": lambda: http2([], path=b"/`a"),
    "h2 backtick in a query": lambda: http2([], path=b"/?`a"),
    "h2 less in a path": lambda: http2([], path=b"/<a"),
    "h2 greater in a query": lambda: http2([], path=b"/?>a"),
    "h2 utf-8": lambda: http2([], path="/ä?€".encode()),
    "h2 latin-1": lambda: http2([], path=b"/\xe4"),
}
OWN = {
    "1.1": lambda: get(fields=b"Host: web\r\n" + MINE),
    "2": lambda: http2([tuple(line.lower().split(b": ")) for line in MINE.split(b"\r\n") if line]),
    "upgrade": lambda: get(fields=b"Host: web\r\n" + MINE + UPGRADE),
}
EXPECT = b"Host: web\r\nContent-Length: 4\r\nExpect: 100-continue\r\n"
# The first of them uses the limit up.
EXPECTING = {
    "first": lambda: get(),
    "length": lambda: get(method=b"POST", fields=EXPECT),
    "chunked": lambda: get(method=b"POST", fields=EXPECT.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")),
    "sent": lambda: http1(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody"),
}
CASES = {"requests": REQUESTS, "own": OWN, "expect": EXPECTING}[WHAT]
print(json.dumps({name: case() for name, case in CASES.items()}))
