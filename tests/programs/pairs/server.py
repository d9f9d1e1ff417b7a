"""The server of the pairs (scenarios.txt) on Python's http.server, which speaks HTTP/1.0.
Usage: server.py PORT..."""

import gzip
import hashlib
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

HOP = re.compile("connection|keep-alive|transfer-encoding|te|trailer|upgrade|http2-settings"
                 "|x-forwarded-client-cert|weft-.*|traceparent|tracestate")


def pattern(n):
    return (b"0123456789abcdef" * (n // 16 + 1))[:n]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def reply(self, status, body=b"", *fields, length=True):
        self.send_response_only(status)
        for name, value in fields:
            self.send_header(name, value)
        if length and status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def report(self):
        body = self.body()
        fields = [(name.lower(), value) for name, value in self.headers.items()]
        cookies = [value for name, value in fields if name == "cookie"]
        fields = [(name, value) for name, value in fields if name != "cookie" and not HOP.fullmatch(name)]
        fields += [("cookie", "; ".join(cookies))] if cookies else []
        lines = [f"method {self.command}", f"target {self.path}"]
        lines += [f"field {name}: {value}" for name, value in sorted(fields, key=lambda field: field[0])]
        lines += [f"body {len(body)} {hashlib.sha256(body).hexdigest()[:16]}", ""]
        self.reply(200, "\n".join(lines).encode("latin-1"), ("x-method", self.command))

    def answer(self):
        path, _, query = self.path.partition("?")
        n = int((parse_qs(query).get("n") or parse_qs(query).get("code") or ["0"])[0])
        if path.startswith("/report"):
            return self.report()
        if path == "/early":
            return self.reply(413, b"too large")
        self.body()
        match path:
            case "/bytes":
                self.reply(200, pattern(n))
            case "/chunked":
                self.reply(200, pattern(n), length=False)
            case "/status":
                self.reply(n, b"", ("ETag", '"a"'))
            case "/gzip":
                self.reply(200, gzip.compress(pattern(1000), mtime=0), ("Content-Encoding", "gzip"))
            case "/cookies":
                self.reply(200, b"c", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"))
            case "/large-head":
                self.reply(200, b"large", ("X-Large", "x" * n))
            case "/truncated":
                self.reply(200, b"half", ("Content-Length", "1000"), length=False)
            case "/slow":
                time.sleep(0.3)
                self.reply(200, b"slow")
            case _:
                self.reply(404, b"no such thing")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_HEAD = do_PURGE = answer


class Server(ThreadingHTTPServer):
    address_family, request_queue_size, daemon_threads = socket.AF_INET6, 200, True

    def handle_error(self, request, client_address):
        pass


for port in sys.argv[1:]:
    threading.Thread(target=Server(("::", int(port)), Handler).serve_forever).start()
