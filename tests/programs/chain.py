"""One of a chain of HTTP servers: asks the next one and answers with its status.

chain.py PORT NEXT-URL STATE-FILE: the last of the chain has the URL `fail` and answers 503; how many
requests came is in STATE-FILE.
"""

import http.client
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PORT, NEXT, STATE = int(sys.argv[1]), sys.argv[2], sys.argv[3]
lock = threading.Lock()
count = 0
own = threading.local()


def ask():
    if NEXT == "fail":
        return 503
    url = urlsplit(NEXT)
    if not hasattr(own, "connection"):
        own.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    try:
        own.connection.request("GET", "/")
        response = own.connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        own.connection.close()
        return 502


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global count
        with lock:
            count += 1
            with open(STATE, "w") as file:
                file.write(str(count))
        self.send_response(ask())
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("0.0.0.0", PORT), Handler).serve_forever()
