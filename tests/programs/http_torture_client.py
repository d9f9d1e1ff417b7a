"""The client for http_torture_server.py, on raw sockets: every check is one shape of HTTP/1.
Usage: http_torture_client.py HOST PORT [--direct]; --direct leaves out what only a proxy must do."""

import hashlib
import json
import os
import socket
import sys
import time

from checks import equal, run

HOST, PORT = sys.argv[1], int(sys.argv[2])
DIRECT = "--direct" in sys.argv
LIMIT = 20


class Conn:
    def __init__(self):
        self.sock = socket.create_connection((HOST, PORT), timeout=LIMIT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, *lines, body=b""):
        """A request's lines without line ends (Host is added), then the body."""
        text = "\r\n".join([lines[0], f"Host: {HOST}:{PORT}", *lines[1:], "", ""])
        self.sock.sendall(text.encode("latin-1") + body)

    def fill(self):
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def line(self):
        while b"\r\n" not in self.buffer:
            if not self.fill():
                raise AssertionError(f"connection ended, rest {self.buffer!r}")
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode("latin-1")

    def exactly(self, count):
        while len(self.buffer) < count:
            if not self.fill():
                raise AssertionError(f"connection ended after {len(self.buffer)} of {count} bytes")
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def rest(self):
        while self.fill():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def header_block(self):
        found = []
        while line := self.line():
            name, _, value = line.partition(":")
            found.append((name.lower(), value.strip()))
        return found

    def head(self):
        version, status, *_ = self.line().split(" ", 2)
        return version, int(status), self.header_block()

    def response(self, method="GET", informational=None):
        version, status, headers = self.head()
        while 100 <= status < 200 and status != 101:
            if informational is not None:
                informational.append(status)
            version, status, headers = self.head()
        trailers = []
        if method == "HEAD" or status in (101, 204, 304):
            body = b""
        elif "chunked" in value(headers, "transfer-encoding"):
            body = b""
            while size := int(self.line().split(";")[0], 16):
                body += self.exactly(size)
                equal(self.line(), "")
            trailers = self.header_block()
        elif value(headers, "content-length"):
            body = self.exactly(int(value(headers, "content-length")))
        else:
            body = self.rest()
        return Response(version, status, headers, body, trailers)

    def ended(self):
        """Whether the peer ended the connection."""
        return not self.buffer and not self.fill()


class Response:
    def __init__(self, version, status, headers, body, trailers):
        self.version, self.status, self.headers = version, status, headers
        self.body, self.trailers = body, trailers

    def header(self, name):
        return value(self.headers, name)


def value(headers, name):
    return ", ".join(v for n, v in headers if n == name)


def ask(*lines, body=b""):
    with Conn() as conn:
        conn.send(*lines, body=body)
        return conn.response(lines[0].split(" ")[0])


def report(*lines, body=b""):
    response = ask(*lines, body=body)
    equal(response.status, 200)
    return json.loads(response.body)


def chunked(body, size=4000, trailers=()):
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    data = b"".join(f"{len(part):x};ext=1\r\n".encode() + part + b"\r\n" for part in parts)
    return data + "\r\n".join(["0", *trailers, "", ""]).encode()


def plain():
    response = ask("GET /plain HTTP/1.1")
    equal((response.status, response.body), (200, b"plain"))


def keep_alive():
    with Conn() as conn:
        for _ in range(50):
            conn.send("GET /plain HTTP/1.1")
            equal(conn.response().body, b"plain")


def byte_by_byte():
    with Conn() as conn:
        for byte in f"GET /plain HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n\r\n".encode():
            conn.sock.sendall(bytes([byte]))
            time.sleep(0.002)
        equal(conn.response().body, b"plain")


def chunked_response():
    with Conn() as conn:
        for _ in range(2):
            conn.send("GET /chunked HTTP/1.1")
            equal(conn.response().body, b"one two " + b"three" * 2000)


def chunked_request():
    body = os.urandom(100_000)
    found = report("POST /report HTTP/1.1", "Transfer-Encoding: chunked", body=chunked(body))
    equal((found["length"], found["sha256"]), (len(body), hashlib.sha256(body).hexdigest()))


def trailers_announced():
    response = ask("GET /trailers/announced HTTP/1.1", "TE: trailers")
    equal((response.body, value(response.trailers, "x-checksum")), (b"body", "abc"))


def trailers_unannounced():
    response = ask("GET /trailers/unannounced HTTP/1.1", "TE: trailers")
    equal((response.body, value(response.trailers, "x-checksum")), (b"body", "abc"))


def request_trailers():
    sent = chunked(b"b" * 9000, trailers=["x-sum: 1"])
    found = report("POST /report HTTP/1.1", "Transfer-Encoding: chunked", "Trailer: x-sum", body=sent)
    equal((found["length"], dict(found["trailers"]).get("x-sum")), (9000, "1"))


def request_trailers_unannounced():
    sent = chunked(b"b" * 9000, trailers=["x-sum: 1", "content-length: 3", "x-sum: 2"])
    found = report("POST /report HTTP/1.1", "Transfer-Encoding: chunked", body=sent)
    equal((found["length"], found["trailers"]), (9000, [["x-sum", "1"], ["x-sum", "2"]]))


def trailers_then_the_next_response():
    with Conn() as conn:
        conn.send("GET /trailers/unannounced HTTP/1.1")
        conn.send("GET /plain HTTP/1.1")
        response = conn.response()
        equal((response.body, value(response.trailers, "x-checksum")), (b"body", "abc"))
        equal(conn.response().status, 200)


def get_with_a_chunked_body():
    found = report("GET /report HTTP/1.1", "Transfer-Encoding: chunked", body=chunked(b"b" * 9000))
    equal(found["length"], 9000)


def streaming():
    with Conn() as conn:
        conn.send("GET /streamed HTTP/1.1")
        conn.head()
        began = time.monotonic()
        while b"early" not in conn.buffer:
            assert conn.fill(), "connection ended"
        assert time.monotonic() - began < 0.5, "the first chunk waited for the second"
        while b"late" not in conn.buffer:
            assert conn.fill(), "connection ended"


def pipelining():
    with Conn() as conn:
        burst = b""
        for i in range(20):
            body = f"{i}".encode() * i
            burst += (f"POST /echo?{i} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body
            burst += f"GET /chunked HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        conn.sock.sendall(burst)
        for i in range(20):
            equal(conn.response().body, f"{i}".encode() * i)
            equal(len(conn.response().body), 10_008)


def expect_continue():
    with Conn() as conn:
        conn.send("POST /echo HTTP/1.1", "Content-Length: 5", "Expect: 100-continue")
        informational = []
        version, status, _ = conn.head()
        informational.append(status)
        equal(status, 100)
        conn.sock.sendall(b"later")
        equal(conn.response("POST").body, b"later")


def expect_refused():
    """Either the server's refusal arrives, or something in between said 100 and then it arrives."""
    with Conn() as conn:
        conn.send("POST /refuse HTTP/1.1", "Content-Length: 5", "Expect: 100-continue")
        version, status, headers = conn.head()
        if status == 100:
            conn.sock.sendall(b"later")
            version, status, headers = conn.head()
        equal(status, 417)


def early_hints():
    with Conn() as conn:
        conn.send("GET /early-hints HTTP/1.1")
        informational = []
        response = conn.response(informational=informational)
        equal((response.status, response.body), (200, b"after hints"))
        assert informational in ([], [103]), informational


def head_of_plain():
    with Conn() as conn:
        for _ in range(3):
            conn.send("HEAD /plain HTTP/1.1")
            response = conn.response("HEAD")
            equal((response.status, response.header("content-length")), (200, "5"))
        conn.send("GET /plain HTTP/1.1")
        equal(conn.response().body, b"plain")


def head_of_chunked():
    with Conn() as conn:
        conn.send("HEAD /chunked HTTP/1.1")
        equal(conn.response("HEAD").status, 200)
        conn.send("GET /plain HTTP/1.1")
        equal(conn.response().body, b"plain")


def http10_request():
    with Conn() as conn:
        conn.sock.sendall(f"GET /plain HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        response = conn.response()
        equal((response.status, response.body), (200, b"plain"))
        assert conn.ended(), "an HTTP/1.0 connection without keep-alive stays open"


def http10_request_without_host():
    with Conn() as conn:
        conn.sock.sendall(b"GET /plain HTTP/1.0\r\n\r\n")
        equal(conn.response().body, b"plain")


def http10_gets_no_chunks():
    with Conn() as conn:
        conn.sock.sendall(f"GET /streamed HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
        version, status, headers = conn.head()
        equal((status, value(headers, "transfer-encoding")), (200, ""))
        equal(conn.rest(), b"earlylate")


def http10_keep_alive():
    with Conn() as conn:
        for _ in range(3):
            conn.sock.sendall(f"GET /plain HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n".encode())
            response = conn.response()
            equal(response.body, b"plain")
            if "keep-alive" not in response.header("connection").lower():
                return  # allowed: a proxy may decline
        return


def http10_response():
    equal(ask("GET /http10 HTTP/1.1").body, b"old")


def until_close():
    equal(len(ask("GET /until-close HTTP/1.1").body), 100_000)


def no_content():
    with Conn() as conn:
        for path, status in [("/204", 204), ("/304", 304), ("/plain", 200)]:
            conn.send(f"GET {path} HTTP/1.1")
            equal(conn.response().status, status)


def connect_method():
    with Conn() as conn:
        conn.sock.sendall(f"CONNECT {HOST}:{PORT} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n\r\n".encode())
        _, status, headers = conn.head()
        equal(status, 200)
        tunnel(conn)


def upgrade():
    with Conn() as conn:
        conn.send("GET /upgrade HTTP/1.1", "Connection: Upgrade", "Upgrade: echo")
        _, status, headers = conn.head()
        equal((status, value(headers, "upgrade")), (101, "echo"))
        tunnel(conn)


def tunnel(conn):
    """Bytes both ways, then half-close: the server says goodbye after our end."""
    for size in (1, 5, 70_000):
        data = os.urandom(size)
        conn.sock.sendall(data)
        equal(conn.exactly(size), data)
    conn.sock.shutdown(socket.SHUT_WR)
    equal(conn.rest(), b"bye")


def upgrade_declined():
    """A server that knows no upgrade answers normally and the connection goes on."""
    with Conn() as conn:
        conn.send("GET /plain HTTP/1.1", "Connection: Upgrade", "Upgrade: unheard-of")
        equal(conn.response().body, b"plain")
        conn.send("GET /plain HTTP/1.1")
        equal(conn.response().body, b"plain")


def nominated_headers_stop():
    """RFC 9110 section 7.6.1, in both directions."""
    found = report("GET /report HTTP/1.1", "Connection: x-hop", "x-hop: secret", "Keep-Alive: timeout=9", "x-end: kept")
    seen = dict(found["headers"])
    equal((seen.get("x-end"), seen.get("x-hop"), seen.get("keep-alive")), ("kept", None, None))
    response = ask("GET /hop HTTP/1.1")
    equal((response.header("x-end"), response.header("x-hop"), response.header("keep-alive")), ("kept", "", ""))


def forged_identity_is_stripped():
    forged = "By=spiffe://forged;URI=spiffe://forged/ns/x/sa/y"
    found = report("GET /report HTTP/1.1", f"x-forwarded-client-cert: {forged}")
    equal("forged" in dict(found["headers"]).get("x-forwarded-client-cert", ""), False)


def end_to_end_headers():
    response = ask("GET /two-cookies HTTP/1.1")
    equal([v for n, v in response.headers if n == "set-cookie"], ["a=1", "b=2"])
    found = report("GET /report?a=1&b=%2F%20+ HTTP/1.1", "x-twice: 1", "x-twice: 2", "x-empty:", "X-Bytes: caf\xe9")
    equal(found["target"], "/report?a=1&b=%2F%20+")
    twice = ", ".join(v for n, v in found["headers"] if n == "x-twice")
    equal((twice, dict(found["headers"])["x-empty"], dict(found["headers"])["x-bytes"]), ("1, 2", "", "caf\xe9"))


def host_is_kept():
    with Conn() as conn:
        conn.sock.sendall(b"GET /report HTTP/1.1\r\nHost: virtual.example\r\n\r\n")
        equal(dict(json.loads(conn.response().body)["headers"])["host"], "virtual.example")


def large_header():
    found = report("GET /report HTTP/1.1", "x-large: " + "l" * 12_000)
    equal(len(dict(found["headers"])["x-large"]), 12_000)


def large_bodies():
    body = os.urandom(3_000_000)
    found = report("POST /report HTTP/1.1", f"Content-Length: {len(body)}", body=body)
    equal(found["sha256"], hashlib.sha256(body).hexdigest())
    response = ask("POST /echo HTTP/1.1", f"Content-Length: {len(body)}", body=body)
    equal(hashlib.sha256(response.body).hexdigest(), hashlib.sha256(body).hexdigest())


def server_resets():
    """No answer at all from the server: a proxy says 502 or 503 and why, or closes."""
    with Conn() as conn:
        conn.send("POST /reset HTTP/1.1", "Content-Length: 0")
        if DIRECT:
            assert conn.ended()
            return
        response = conn.response("POST")
        assert response.status in (502, 503), response.status
        assert response.header("weft-reason"), "no weft-reason"


def truncated_response_is_not_whole():
    """A body cut short must not look complete."""
    try:
        with Conn() as conn:
            conn.send("GET /half HTTP/1.1")
            response = conn.response()
    except (AssertionError, ConnectionError):
        return
    if response.status == 502 and response.header("weft-reason"):
        return  # the connection broke before the head was handed on
    raise AssertionError(f"{response.status} with {len(response.body)} bytes looks complete")


def refused(raw, statuses):
    with Conn() as conn:
        conn.sock.sendall(raw)
        try:
            response = conn.response()
        except (AssertionError, ConnectionError):
            return  # closed without a word: allowed, no request went on
        assert response.status in statuses, (response.status, response.body[:80])
        assert "method" not in response.body.decode("latin-1"), "the request reached the server"


def host_line():
    return f"Host: {HOST}\r\n"


def malformed_requests_stop():
    h = host_line()
    for raw in [
        f"POST /report HTTP/1.1\r\n{h}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        f"POST /report HTTP/1.1\r\n{h}Content-Length: x\r\n\r\n",
        f"POST /report HTTP/1.1\r\n{h}Content-Length: -1\r\n\r\n",
        f"POST /report HTTP/1.1\r\n{h}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        f"POST /report HTTP/1.1\r\n{h}Transfer-Encoding: gzip, identity\r\n\r\n",
        f"GET /report HTTP/1.1\r\n{h}Bad Name: x\r\n\r\n",
        f"GET /report HTTP/1.1\r\n{h}x-colon : x\r\n\r\n",
        f"GET /report HTTP/1.1\r\n{h}x-nul: a\x00b\r\n\r\n",
    ]:
        refused(raw.encode("latin-1"), range(400, 600))


def length_and_chunked_together():
    """RFC 9112 section 6.3: refused, or Transfer-Encoding wins; never both passed on."""
    with Conn() as conn:
        conn.sock.sendall((f"POST /report HTTP/1.1\r\n{host_line()}Content-Length: 3\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n").encode())
        response = conn.response("POST")
        if response.status == 200:
            found = json.loads(response.body)
            names = [n for n, _ in found["headers"]]
            equal(found["length"], 4)
            equal("content-length" in names and "transfer-encoding" in names, False)
        else:
            equal(response.status, 400)


def header_flood_is_refused():
    lines = "".join(f"x-{i}: {'f' * 1000}\r\n" for i in range(2000))
    try:
        refused(f"GET /report HTTP/1.1\r\n{host_line()}{lines}\r\n".encode(), (400, 431))
    except ConnectionError:
        pass


ALWAYS = [plain, keep_alive, byte_by_byte, chunked_response, chunked_request, trailers_announced,
          trailers_unannounced, trailers_then_the_next_response, request_trailers,
          get_with_a_chunked_body, streaming, pipelining, expect_continue, expect_refused,
          early_hints, head_of_plain, head_of_chunked, http10_request, http10_request_without_host,
          http10_keep_alive, http10_response, until_close, no_content, connect_method, upgrade,
          upgrade_declined, end_to_end_headers, host_is_kept, large_header, large_bodies, server_resets,
          truncated_response_is_not_whole]
BEHIND_A_PROXY = [request_trailers_unannounced, http10_gets_no_chunks, nominated_headers_stop,
                  forged_identity_is_stripped,
                  malformed_requests_stop, length_and_chunked_together, header_flood_is_refused]

only = [a for a in sys.argv[3:] if not a.startswith("--")]
run([(c.__name__, c) for c in ALWAYS + ([] if DIRECT else BEHIND_A_PROXY) if not only or c.__name__ in only])
