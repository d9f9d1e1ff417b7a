"""An HTTP/1.1 application whose worker ends at a certain request.
Usage: crashing.py PORT
GET /crash closes its connection unanswered, GET /slow is answered after half a second, /seen says how
many connections there were and how many of them ended by /crash."""

import http.server
import json
import sys
import threading
import time

seen = dict(connections=0, crashes=0)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        seen["connections"] += 1

    def do_GET(self):
        if self.path == "/crash":
            seen["crashes"] += 1
            self.close_connection = True
            return
        if self.path == "/slow":
            time.sleep(0.5)
        body = json.dumps(seen).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


Server(("", int(sys.argv[1])), Handler).serve_forever()
