"""Requests whose callers break off in the middle of the body, and the server that waits for it.

uploads.py serve PORT: POST answers when all of the body is there; GET says how many heads of POST came.
uploads.py break HOST PORT TIMES: breaks uploads off in each way so many times, then asks once more, prints
what that is answered with and stays. Meanwhile it listens on port 9000, so that it is listed for Prometheus.
"""

import http.client
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
begun = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global begun
        with lock:
            begun += 1
        try:
            if self.headers.get("transfer-encoding"):
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                length = int(self.headers["content-length"])
                if len(self.rfile.read(length)) < length:
                    raise ValueError("short")
        except (ValueError, OSError):
            self.close_connection = True
            return
        self.say("whole")

    def do_GET(self):
        with lock:
            text = str(begun)
        self.say(text)

    def say(self, text):
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


def ask(host, port):
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def begin(host, port, framing, part):
    """A connection on which the server has seen the head of a request."""
    before = int(ask(host, port)[1])
    stream = socket.create_connection((host, port), timeout=20)
    head = f"POST /upload HTTP/1.1\r\nhost: {host}:{port}\r\n{framing}\r\n\r\n"
    stream.sendall(head.encode() + part)
    while int(ask(host, port)[1]) == before:
        time.sleep(0.01)
    return stream


def drain(stream):
    try:
        while stream.recv(65536):
            pass
    except OSError:
        pass
    stream.close()


def fin(host, port):
    stream = begin(host, port, "content-length: 1000", b"half")
    stream.shutdown(socket.SHUT_WR)
    drain(stream)


def reset(host, port):
    stream = begin(host, port, "content-length: 1000", b"half")
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def chunk(host, port):
    stream = begin(host, port, "transfer-encoding: chunked", b"4\r\nhalf\r\n")
    stream.sendall(b"zz\r\nno size\r\n")
    drain(stream)


def main():
    if sys.argv[1] == "serve":
        return Server(("0.0.0.0", int(sys.argv[2])), Handler).serve_forever()
    _listed = socket.create_server(("0.0.0.0", 9000))
    host, port, times = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    for way in (fin, reset, chunk):
        for _ in range(times):
            way(host, port)
    print("afterwards", *ask(host, port), flush=True)
    time.sleep(3600)


main()
