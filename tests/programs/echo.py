"""An HTTP server that says what it was asked for.

echo.py PORT NAME: answers with JSON: its name, the method, path and fields of the request, and the
body. /count answers with how many other requests came; /flaky fails the first time that a query
comes and is well from then on.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME = int(sys.argv[1]), sys.argv[2]
lock = threading.Lock()
count = 0
seen = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        global count
        length = int(self.headers.get("content-length", 0))
        asked = {
            "name": NAME,
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": self.rfile.read(length).decode(),
        }
        status = 200
        with lock:
            if self.path == "/count":
                asked = {"name": NAME, "count": count}
            else:
                count += 1
            if self.path.startswith("/flaky") and self.path not in seen:
                seen.add(self.path)
                status = 503
        text = json.dumps(asked).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.send_header("x-from", NAME)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("0.0.0.0", PORT), Handler).serve_forever()
