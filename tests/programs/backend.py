"""An HTTP server that behaves as its path and arguments say.

backend.py [ADDRESS:]PORT NAME [STATUS]: answers with NAME, and with STATUS (200); with STATUS 0 it never does. /slow/SECONDS answers after
a while, /count with how many other requests came.
"""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

(ADDRESS, _, PORT), NAME = sys.argv[1].rpartition(":"), sys.argv[2]
STATUS = int(sys.argv[3]) if len(sys.argv) > 3 else 200
lock = threading.Lock()
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        global count
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        status, body = STATUS, NAME
        if self.path == "/count":
            with lock:
                status, body = 200, str(count)
        else:
            with lock:
                count += 1
            if STATUS == 0:
                time.sleep(3600)
            if self.path.startswith("/slow/"):
                time.sleep(float(self.path.removeprefix("/slow/").partition("?")[0]))
        body = (body + "\n").encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server((ADDRESS or "0.0.0.0", int(PORT)), Handler).serve_forever()
