"""The client for edges_server.py, on raw sockets: every check is one end of a message or connection that
libraries hide. Usage: edges_client.py HOST PORT [--direct]; --direct leaves out what only a proxy must
do."""

import json
import socket
import struct
import sys
import time

from checks import equal, run

HOST, PORT = sys.argv[1], int(sys.argv[2])
DIRECT = "--direct" in sys.argv


class Conn:
    def __init__(self):
        self.sock = socket.create_connection((HOST, PORT), timeout=20)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, *lines, body=b"", host=True):
        fields = [f"Host: {HOST}:{PORT}"] if host else []
        text = "\r\n".join([lines[0], *fields, *lines[1:], "", ""])
        self.sock.sendall(text.encode("latin-1") + body)

    def fill(self):
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def head(self):
        while b"\r\n\r\n" not in self.buffer:
            if not self.fill():
                raise AssertionError(f"ended after {self.buffer!r}")
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {}
        for field in fields:
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        return int(line.split(" ")[1]), headers

    def exactly(self, count):
        while len(self.buffer) < count:
            if not self.fill():
                raise AssertionError(f"ended after {len(self.buffer)} of {count} bytes")
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def rest(self):
        while self.fill():
            pass
        return self.buffer

    def response(self, method="GET"):
        status, headers = self.head()
        if method == "HEAD" or status in (204, 304):
            return status, headers, b""
        if "chunked" in headers.get("transfer-encoding", ""):
            # One message per connection: chunks, trailers and all.
            while not (b"\r\n0\r\n" in self.buffer and self.buffer.endswith(b"\r\n\r\n")):
                if not self.fill():
                    raise AssertionError(f"ended after {self.buffer!r}")
            return status, headers, self.buffer
        return status, headers, self.exactly(int(headers["content-length"]))

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def ask(*lines, body=b"", host=True):
    with Conn() as conn:
        conn.send(*lines, body=body, host=host)
        return conn.response()


def seen():
    status, _, body = ask("GET /seen HTTP/1.1")
    equal(status, 200)
    return json.loads(body)


def until_seen(what, count, seconds=30):
    end = time.monotonic() + seconds
    while (found := seen().get(what, 0)) < count:
        if time.monotonic() > end:
            raise AssertionError(f"{found} of {count} {what} after {seconds} s")
        time.sleep(0.1)


def callers_that_go_away():
    """Closed, and reset: the application is told of both."""
    before = seen().get("gone", 0)
    conns = [Conn() for _ in range(20)]
    for conn in conns:
        conn.send("GET /poll HTTP/1.1")
    until_seen("polls", before + 20)
    equal(seen().get("gone", 0), before)
    for conn in conns[:10]:
        conn.sock.close()
    for conn in conns[10:]:
        conn.reset()
    until_seen("gone", before + 20)


def half_closed():
    with Conn() as conn:
        conn.send("GET /slow?seconds=0.4 HTTP/1.1")
        conn.sock.shutdown(socket.SHUT_WR)
        equal(conn.response()[2], b"slow")


def early_answers():
    """An application that answers before it has read, and closes with unread bytes."""
    part = b"x" * 65536
    for number in range(60):
        with Conn() as conn:
            conn.send("POST /early HTTP/1.1", f"Content-Length: {100 * len(part)}")
            try:
                for _ in range(100):
                    conn.sock.sendall(part)
            except OSError:
                pass
            status, _, body = conn.response()
            equal((number, status, body), (number, 413, b"too large"))


def large_heads():
    for size in (15_000, 40_000, 60_000):
        status, headers, body = ask(f"GET /large-head?bytes={size} HTTP/1.1")
        equal((status, len(headers["x-large"]), body), (200, size, b"large"))
        status, _, body = ask(f"GET /large-trailers?bytes={size} HTTP/1.1")
        equal((status, b"large" in body, body.count(b"x" * size)), (200, True, 1))
        status, _, body = ask("GET /echo HTTP/1.1", f"X-Large: {'y' * size}")
        equal((status, body.count(b"y" * size)), (200, 1))


def too_large_heads():
    status, headers, _ = ask("GET /large-head?bytes=70000 HTTP/1.1")
    equal((status, headers["weft-reason"]), (502, "headers-too-large"))
    status, headers, _ = ask("GET /echo HTTP/1.1", f"X-Large: {'y' * 70_000}")
    equal((status, headers["weft-reason"], headers["connection"]), (431, "headers-too-large", "close"))


def http_1_0():
    with Conn() as conn:
        for _ in range(3):
            conn.send("GET /echo HTTP/1.0", "Connection: keep-alive")
            status, headers, _ = conn.response()
            equal((status, headers.get("connection", "").lower()), (200, "keep-alive"))
        conn.send("GET /echo HTTP/1.0")
        equal(conn.response()[0], 200)
        equal(conn.rest(), b"")


def statuses():
    status, headers, _ = ask("GET /not-modified HTTP/1.1")
    equal((status, headers.get("content-length"), headers["etag"]), (304, "1234", '"a"'))
    equal(ask("GET /status?code=299 HTTP/1.1")[::2], (299, b"body"))
    equal(ask("GET /status?code=799 HTTP/1.1")[::2], (799, b"body"))


def space_before_colon():
    status, headers, body = ask("GET /space HTTP/1.1")
    equal((status, headers.get("x-space"), body), (200, "1", b"ok"))


def expectations():
    """100 is the application's word: it comes neither before the application says it, nor instead of it,
    or this would wait for it in vain."""
    with Conn() as conn:
        began = time.monotonic()
        conn.send("PUT /expect HTTP/1.1", "Content-Length: 4", "Expect: 100-continue")
        equal(conn.head()[0], 100)
        waited = time.monotonic() - began
        conn.sock.sendall(b"body")
        equal(conn.response()[2], b"in time")
        if waited < 0.24:
            raise AssertionError(f"100 came after {waited:.2f} s, the application says it after 0.25")


def refused_expectations():
    before = seen().get("refused", 0)
    with Conn() as conn:
        conn.send("PUT /refuse HTTP/1.1", "Content-Length: 4", "Expect: 100-continue")
        equal(conn.response()[0], 417)
    until_seen("refused", before + 1)
    equal(seen().get("refused in vain", 0), 0)


def refusals():
    for lines, status in [
        (["GET / HTTP/1.1"], 400),
        (["GET / HTTP/1.1", "Host: a", "Host: b"], 400),
        (["GET /x"], 400),
        (["GET / HTTP/1.1", "Host: a", "Content-Length: 1", "Transfer-Encoding: chunked"], 400),
        (["GET / HTTP/1.1", "Host: a", "Transfer-Encoding: gzip, chunked"], 501),
        (["GET / HTTP/1.7", "Host: a"], 505),
        (["CONNECT a:80 HTTP/1.1", "Host: a:80", "Content-Length: 3"], 400),
    ]:
        with Conn() as conn:
            conn.send(*lines, host=False)
            found, headers, _ = conn.response()
            equal((lines, found, headers["weft-reason"]), (lines, status, "bad-request"))
            equal((headers["connection"], conn.rest()), ("close", b""))
    with Conn() as conn:
        body = b"2\r\nab\r\nnonsense\r\n"
        conn.send("POST /upload HTTP/1.1", "Transfer-Encoding: chunked", body=body)
        status, headers, _ = conn.response()
        equal((status, headers["weft-reason"]), (400, "bad-request"))


def broken_uploads():
    """They are their callers' fault: afterwards all goes on."""
    before = seen().get("broken uploads", 0)
    for number in range(30):
        conn = Conn()
        if number % 3 == 2:
            conn.send("POST /upload HTTP/1.1", "Transfer-Encoding: chunked", body=b"2\r\nab\r\nno\r\n")
            equal(conn.response()[0], 400)
            conn.sock.close()
        else:
            conn.send("POST /upload HTTP/1.1", "Content-Length: 100000", body=b"x" * 5000)
            time.sleep(0.02)
            conn.reset() if number % 3 else conn.sock.close()
    if not DIRECT:
        until_seen("broken uploads", before + 1)
    for _ in range(20):
        equal(ask("GET /echo HTTP/1.1")[0], 200)


def main():
    checks = [
        callers_that_go_away, half_closed, early_answers, large_heads, http_1_0, statuses,
        space_before_colon, expectations, refused_expectations, broken_uploads,
        too_large_heads, refusals,
    ]
    if DIRECT:
        # What a server of its own does differently.
        ours = {early_answers, space_before_colon, http_1_0, too_large_heads, refusals, broken_uploads}
        checks = [check for check in checks if check not in ours]
    run([(check.__name__, check) for check in checks])


main()
