"""What HTTP/1 libraries hide, on raw sockets: connections that end early on either side, large heads,
expectations. Usage: edges_server.py PORT. Asked for /seen it tells what it has seen."""

import json
import socket
import sys
import threading
import time
from collections import Counter
from urllib.parse import parse_qs, urlsplit

SEEN = Counter()
LOCK = threading.Lock()


def see(what):
    with LOCK:
        SEEN[what] += 1


class Ended(Exception):
    pass


class Conn:
    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def fill(self):
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def head(self):
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                raise Ended
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        return head.decode("latin-1")

    def body(self, headers):
        """Reads a body to its end."""
        if "chunked" in headers.get("transfer-encoding", ""):
            while not self.buffer.endswith(b"0\r\n\r\n"):
                if not self.fill():
                    raise Ended
            self.buffer = b""
            return
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            if not self.fill():
                raise Ended
        self.buffer = self.buffer[length:]

    def answer(self, status="200 OK", body=b"", *fields):
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
        self.sock.sendall("\r\n".join(lines).encode("latin-1") + body)

    def says_nothing(self, seconds):
        """Whether nothing comes for so long."""
        self.sock.settimeout(seconds)
        try:
            return not self.buffer and not self.fill()
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(60)


def one(conn):
    head = conn.head()
    line, *fields = head.split("\r\n")
    headers = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.lower()] = value.strip()
    url = urlsplit(line.split(" ")[1])
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    match url.path:
        case "/seen":
            with LOCK:
                conn.answer("200 OK", json.dumps(SEEN).encode())
        case "/poll":
            see("polls")
            try:
                while conn.fill():
                    pass
            finally:
                see("gone")
            raise Ended
        case "/slow":
            time.sleep(float(query["seconds"]))
            conn.answer("200 OK", b"slow")
        case "/early":
            conn.answer("413 Content Too Large", b"too large", "Connection: close")
            raise Ended
        case "/large-head":
            large = "x" * int(query["bytes"])
            conn.answer("200 OK", b"large", f"X-Large: {large}")
        case "/large-trailers":
            conn.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nlarge\r\n0\r\n")
            conn.sock.sendall(b"X-Large: " + b"x" * int(query["bytes"]) + b"\r\n\r\n")
        case "/not-modified":
            conn.sock.sendall(b'HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: "a"\r\n\r\n')
        case "/status":
            conn.answer(f"{query['code']} Whatever", b"body")
        case "/space":
            conn.sock.sendall(b"HTTP/1.1 200 OK\r\nX-Space : 1\r\nContent-Length: 2\r\n\r\nok")
        case "/expect":
            early = not conn.says_nothing(0.25)
            conn.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            conn.body(headers)
            conn.answer("200 OK", b"early" if early else b"in time")
        case "/refuse":
            conn.answer("417 Expectation Failed", b"no", "Connection: close")
            see("refused" if conn.says_nothing(2) else "refused in vain")
            raise Ended
        case "/upload":
            see("uploads")
            try:
                conn.body(headers)
            except (Ended, OSError):
                see("broken uploads")
                raise
            conn.answer("200 OK", b"uploaded")
        case _:
            conn.body(headers)
            conn.answer("200 OK", head.encode("latin-1"))


def serve(sock):
    sock.settimeout(60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock:
        conn = Conn(sock)
        try:
            while True:
                one(conn)
        except (Ended, OSError):
            pass


family = socket.AF_INET6
listener = socket.create_server(("::", int(sys.argv[1])), family=family, dualstack_ipv6=True, backlog=512)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
