"""What makes sidecars tell each attribute of spans.

spans.py serve KIND: HTTP on 8080. /slow answers after 0.3 s, and of KIND bad /bad fails with 503;
a request to upgrade becomes an echo, a gRPC call ends with status 5. spans.py ask: asks for
everything until both endpoints were asked, then prints "asked" and waits.
"""

import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from asking import WEB, ask

CLOSED = "closed.shop.mesh"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if "upgrade" in self.headers:
            self.send_response(101)
            self.send_header("Connection", "upgrade")
            self.send_header("Upgrade", "echo")
            self.end_headers()
            while data := self.connection.recv(1024):
                self.connection.sendall(data)
            self.close_connection = True
            return
        path = self.path.split("?")[0]
        time.sleep({"/slow": 0.3}.get(path, 0))
        self.answer(503 if path == "/bad" and kind == "bad" else 200)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        fields = {"content-type": "application/grpc", "grpc-status": "5"}
        self.answer(200, fields)

    def do_BREW(self):
        self.answer(200)

    def answer(self, status, fields={}):
        self.send_response(status)
        for name, value in {"content-length": "0", **fields}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


def upgrade():
    with socket.create_connection((WEB, 8080), timeout=20) as connection:
        connection.sendall(
            b"GET /upgrade HTTP/1.1\r\nHost: web.shop.mesh\r\n"
            b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(1024)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        connection.sendall(b"ping")
        assert connection.recv(4) == b"ping"


def everything():
    ask("/?token=secret")
    # Two at a time where one is let through: the other one waits. Each is slow, so that another
    # attempt is made beside it.
    both = [threading.Thread(target=ask, args=["/slow"]) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    # Asked in turns: one of two is the bad one, and another attempt is made.
    statuses = [ask("/bad")[0] for _ in range(2)]
    assert statuses == [200, 200], statuses
    grpc = {"content-type": "application/grpc", "te": "trailers"}
    ask("/pkg.Service/Method", "POST", grpc)
    ask("/", "BREW")
    upgrade()
    refused = [ask("/limited") for _ in range(4)]
    assert (429, "rate-limited") in refused, refused
    answer = ask("/", host=CLOSED)
    assert answer == (503, "circuit-open"), answer


if sys.argv[1] == "serve":
    kind = sys.argv[2]
    Server(("", 8080), Handler).serve_forever()
everything()
print("asked", flush=True)
threading.Event().wait()
