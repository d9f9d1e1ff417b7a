"""What makes a sidecar count each thing that it promises to.

promised.py serve HEDGE: HTTP on 8080 (/slow answers after 1 s, /hedge after HEDGE seconds, /503 with
that, the rest at once), an echo on 8081. promised.py ask READY GO: asks once for everything, writes READY, keeps a slow request and a TCP
connection under way until GO exists, and goes on until it is stopped.
"""

import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from asking import WEB, ask


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep({"/slow": 1, "/hedge": hedge}.get(self.path, 0))
        self.send_response(503 if self.path == "/503" else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/grpc")
        self.send_header("Content-Length", "0")
        self.send_header("grpc-status", "5")
        self.end_headers()

    def log_message(self, *_arguments):
        pass


def echo():
    listener = socket.create_server(("", 8081), backlog=16)
    while True:
        connection, _ = listener.accept()

        def serve(connection=connection):
            with connection:
                while data := connection.recv(1024):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()


def tcp():
    connection = socket.create_connection((WEB, 8081), timeout=20)
    connection.sendall(b"ping")
    assert connection.recv(4) == b"ping"
    return connection


def refused():
    """A port that the service does not have: the mesh closes it."""
    try:
        with socket.create_connection((WEB, 9999), timeout=20) as connection:
            connection.settimeout(20)
            # Nothing is said: what is silent is no HTTP.
            connection.recv(1)
    except OSError:
        pass


def everything(ready, go):
    assert ask("/")[0] == 200
    assert ask("/503")[0] == 503
    for _ in range(4):
        ask("/hedge")
    ask("/pkg.Service/Method", "POST", {"content-type": "application/grpc", "te": "trailers"})
    statuses = {ask("/limited")[0] for _ in range(5)}
    assert statuses == {200, 429}, statuses
    tcp().close()
    refused()
    for name in ["gone.shop.mesh", "nobody.example"]:
        try:
            socket.getaddrinfo(name, 80)
        except OSError:
            pass

    def slowly():
        while not os.path.exists(go):
            ask("/slow")

    threading.Thread(target=slowly, daemon=True).start()
    held = tcp()
    time.sleep(0.2)
    open(ready, "w").close()
    while True:
        time.sleep(1)
        held.sendall(b"ping")
        held.recv(4)


if sys.argv[1] == "serve":
    hedge = float(sys.argv[2])
    threading.Thread(target=echo, daemon=True).start()
    ThreadingHTTPServer(("", 8080), Handler).serve_forever()
else:
    everything(*sys.argv[2:])
