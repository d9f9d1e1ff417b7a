"""An HTTP server that does so many requests at a time, and lets all others wait in a queue without end.

capacity.py PORT NAME WORKERS SECONDS: each request but /count takes a worker for SECONDS, or for as long as
/slow/SECONDS says, and is answered with NAME. /count answers with how many were begun.
"""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME = int(sys.argv[1]), sys.argv[2]
SECONDS = float(sys.argv[4])
workers = threading.Semaphore(int(sys.argv[3]))
lock = threading.Lock()
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        global count
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = NAME
        if self.path == "/count":
            body = str(count)
        else:
            with workers:
                with lock:
                    count += 1
                slow = self.path.startswith("/slow/")
                time.sleep(float(self.path.removeprefix("/slow/").partition("?")[0]) if slow else SECONDS)
        body = (body + "\n").encode()
        try:
            self.send_response(200)
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
    request_queue_size = 1024


Server(("0.0.0.0", PORT), Handler).serve_forever()
