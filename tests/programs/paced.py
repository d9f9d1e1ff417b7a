"""An HTTP server with a pace of its own.

paced.py PORT NAME SECONDS [EVERY [STATUS [USUALLY]]]: every EVERYth request (1: each) is answered after
SECONDS and with STATUS (200), the others after USUALLY (0) and with 200; the body is NAME and how
many bytes came.
/counts answers with how many other requests came, by method; /hang never does; /half sends half of
its body; /trickle/COUNT/PAUSE sends a piece of its body now and then; /fields answers with the
fields that came.
"""

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME, SECONDS = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
EVERY = int(sys.argv[4]) if len(sys.argv) > 4 else 1
STATUS = int(sys.argv[5]) if len(sys.argv) > 5 else 200
USUALLY = float(sys.argv[6]) if len(sys.argv) > 6 else 0
lock = threading.Lock()
counts = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one segment: else Nagle's algorithm sets the pace.
    wbufsize = 65536
    disable_nagle_algorithm = True

    def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return len(self.rfile.read(int(self.headers.get("content-length", 0))))
        total = 0
        while size := int(self.rfile.readline(), 16):
            total += len(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return total

    def head(self, status, fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, str(value))
        self.end_headers()

    def text(self, text, status=200):
        text = (text + "\n").encode()
        self.head(status, {"content-length": len(text)})
        self.wfile.write(text)

    def answer(self):
        came = self.body()
        if self.path == "/counts":
            with lock:
                return self.text(json.dumps(counts))
        if self.path == "/fields":
            return self.text(json.dumps({k.lower(): v for k, v in self.headers.items()}))
        with lock:
            counts[self.command] += 1
            paced = sum(counts.values()) % EVERY == 0
        if self.path == "/hang":
            time.sleep(60)
        elif self.path == "/half":
            self.head(200, {"content-length": 10})
            self.wfile.write(b"12345")
            self.wfile.flush()
            time.sleep(60)
        elif self.path.startswith("/big/"):
            mib = int(self.path.removeprefix("/big/"))
            self.head(200, {"content-length": mib << 20})
            for _ in range(mib):
                self.wfile.write(b"x" * (1 << 20))
        elif self.path.startswith("/trickle/"):
            _, _, count, pause = self.path.split("/")
            self.head(200, {"content-length": count})
            for _ in range(int(count)):
                time.sleep(float(pause))
                self.wfile.write(b".")
                self.wfile.flush()
        else:
            time.sleep(SECONDS if paced else USUALLY)
            self.text(f"{NAME} {came}", STATUS if paced else 200)

    def handle_answer(self):
        try:
            self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PUT = handle_answer

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


Server(("0.0.0.0", PORT), Handler).serve_forever()
