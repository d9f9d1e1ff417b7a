"""An HTTP/1.1 server on raw sockets that answers in every legal shape, so that nothing between it
and its client can hide behind a library's habits. Usage: http_torture_server.py [BIND] PORT"""

import hashlib
import json
import socket
import sys
import threading
import time


class Closed(Exception):
    """The client is gone."""


class Wire:
    """Buffered reading from one socket."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def fill(self):
        data = self.sock.recv(65536)
        if not data:
            raise Closed
        self.buffer += data

    def line(self):
        while b"\r\n" not in self.buffer:
            self.fill()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode("latin-1")

    def exactly(self, count):
        while len(self.buffer) < count:
            self.fill()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def headers(self):
        found = []
        while True:
            line = self.line()
            if not line:
                return found
            name, _, value = line.partition(":")
            found.append((name.lower(), value.strip()))

    def chunked(self):
        body = b""
        while True:
            size = int(self.line().split(";")[0], 16)
            if size == 0:
                return body, self.headers()
            body += self.exactly(size)
            assert self.line() == ""

    def send(self, data):
        self.sock.sendall(data.encode("latin-1") if isinstance(data, str) else data)


def get(headers, name):
    return ", ".join(v for n, v in headers if n == name)


def reply(wire, body=b"", status="200 OK", headers=(), head=False):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    wire.send("\r\n".join(lines).encode("latin-1") + (b"" if head else body))


def chunks(wire, parts, headers=(), trailers=(), head=False):
    wire.send("\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", ""]))
    if head:
        return
    for part in parts:
        if callable(part):
            part()
            continue
        wire.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    wire.send("\r\n".join(["0", *trailers, "", ""]))


def echo_bytes(wire):
    """Raw bytes back, until the client ends its half; then a farewell over ours."""
    try:
        if wire.buffer:
            wire.send(wire.buffer)
            wire.buffer = b""
        while True:
            data = wire.sock.recv(65536)
            if not data:
                break
            wire.send(data)
        wire.send(b"bye")
    except OSError:
        pass
    raise Closed


def body_of(wire, headers):
    if "chunked" in get(headers, "transfer-encoding"):
        return wire.chunked()
    return wire.exactly(int(get(headers, "content-length") or 0)), []


def answer(wire):
    """Serves one request; says whether the connection goes on."""
    method, target, version = wire.line().split(" ")
    headers = wire.headers()
    path = target.split("?")[0]
    if path.startswith("http://"):
        path = "/" + path.split("/", 3)[3]
    head = method == "HEAD"
    if method == "CONNECT":
        wire.send(f"HTTP/1.1 200 OK\r\nx-target: {target}\r\n\r\n")
        echo_bytes(wire)
    if path == "/upgrade" and get(headers, "upgrade"):
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        echo_bytes(wire)
    if path == "/refuse":
        reply(wire, b"no", "417 Expectation Failed", ["Connection: close"])
        return False
    if "100-continue" in get(headers, "expect").lower():
        wire.send("HTTP/1.1 100 Continue\r\n\r\n")
    body, trailers = body_of(wire, headers)
    if path == "/report":
        report = dict(method=method, target=target, version=version, headers=headers,
                      length=len(body), sha256=hashlib.sha256(body).hexdigest(), trailers=trailers)
        reply(wire, json.dumps(report).encode(), head=head)
    elif path == "/echo":
        reply(wire, body, headers=["Content-Type: application/octet-stream"], head=head)
    elif path == "/chunked":
        chunks(wire, [b"one ", b"two ", b"three" * 2000], head=head)
    elif path == "/streamed":
        chunks(wire, [b"early", lambda: time.sleep(0.7), b"late"])
    elif path == "/trailers/announced":
        chunks(wire, [b"body"], ["Trailer: x-checksum"], ["x-checksum: abc"])
    elif path == "/trailers/unannounced":
        chunks(wire, [b"body"], [], ["x-checksum: abc"])
    elif path == "/early-hints":
        wire.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        reply(wire, b"after hints")
    elif path == "/until-close":
        wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"u" * 100_000)
        return False
    elif path == "/http10":
        wire.send("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")
        return False
    elif path == "/204":
        wire.send("HTTP/1.1 204 No Content\r\n\r\n")
    elif path == "/304":
        wire.send('HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 77\r\n\r\n')
    elif path == "/hop":
        reply(wire, b"hop", headers=["Connection: x-hop, keep-alive", "x-hop: secret",
                                     "Keep-Alive: timeout=7", "x-end: kept"])
    elif path == "/two-cookies":
        reply(wire, b"c", headers=["Set-Cookie: a=1", "Set-Cookie: b=2"])
    elif path == "/reset":
        raise Closed
    elif path == "/half":
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return False
    else:
        reply(wire, b"plain", head=head)
    if version == "HTTP/1.0":
        return "keep-alive" in get(headers, "connection").lower()
    return "close" not in get(headers, "connection").lower()


def serve(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(sock)
    try:
        while answer(wire):
            pass
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(2)
        while sock.recv(65536):
            pass
    except (Closed, OSError, ValueError, AssertionError):
        pass
    finally:
        sock.close()


def main():
    bind, port = (sys.argv[1:] if len(sys.argv) > 2 else ("::", sys.argv[1]))
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    if bind == "::" and socket.has_dualstack_ipv6():
        listener = socket.create_server((bind, int(port)), family=family, dualstack_ipv6=True, backlog=512)
    else:
        listener = socket.create_server((bind, int(port)), family=family, backlog=512)
    print("serving", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


main()
