"""An HTTP server that turns slow, then dead, then well again.

turning.py PORT NAME STATE-DIR BEGIN: BEGIN is when the schedule begins, seconds since the epoch, or 0
for a server that stays well. Well: it answers after 5 ms; slow: after a second; dead: it closes the
connection without an answer. STATE-DIR/NAME holds when each request came, seconds since BEGIN.
"""

import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME, STATE, BEGIN = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
SLOW_FROM, DEAD_FROM, WELL_FROM = 6, 16, 24
lock = threading.Lock()
came = open(f"{STATE}/{NAME}", "w", buffering=1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        now = time.time() - BEGIN if BEGIN else -1
        with lock:
            came.write(f"{now:.3f}\n")
        if DEAD_FROM <= now < WELL_FROM:
            self.close_connection = True
            return
        time.sleep(1 if SLOW_FROM <= now < DEAD_FROM else 0.005)
        try:
            self.send_response(200)
            self.send_header("content-length", "3")
            self.end_headers()
            self.wfile.write(b"ok\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


Server(("0.0.0.0", PORT), Handler).serve_forever()
