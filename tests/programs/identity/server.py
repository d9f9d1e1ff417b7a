"""An HTTP server that prints and answers with the caller's identity as it sees it, by CGI's rule for
the names of fields."""

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        headers = self.headers or {}
        folded = {"".join(c if c.isalnum() else "_" for c in name.upper()): value for name, value in headers.items()}
        seen = folded.get("X_FORWARDED_CLIENT_CERT", "-")
        print(self.command, self.path, f"identity={seen}", flush=True)
        length = int(headers.get("content-length", 0))
        self.rfile.read(length)
        body = f"identity={seen}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_args):
        pass


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


Server(("::", int(sys.argv[1])), Answer).serve_forever()
