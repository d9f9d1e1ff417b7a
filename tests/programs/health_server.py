"""A server whose health is said by files. Usage: health_server.py http|grpc|tcp PORT NAME STATE-DIR

While STATE-DIR/NAME.ill exists it is ill: /healthz is answered with 503, grpcio's health service says
NOT_SERVING, nobody listens at the TCP port. Every other HTTP request is answered with NAME, and with
500 while STATE-DIR/NAME.broken exists. STATE-DIR/NAME.checks gets a line for each check: over HTTP who
asked, and with what.
"""

import os
import socket
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KIND, PORT, NAME, STATE = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
lock = threading.Lock()
checks = open(f"{STATE}/{NAME}.checks", "w", buffering=1)


def is_(what):
    return os.path.exists(f"{STATE}/{NAME}.{what}")


def checked(how):
    with lock:
        checks.write(how + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/healthz"):
            ours = [name for name in self.headers if name.startswith("weft-")]
            asked = [self.path, self.headers["host"], self.headers["user-agent"], self.headers["x-probe"]]
            checked(" ".join(map(str, asked + sorted(ours))))
            status, body = (503 if is_("ill") else 200), "health"
        else:
            status, body = (500 if is_("broken") else 200), NAME
        body = (body + "\n").encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve_grpc():
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    class Servicer(health.HealthServicer):
        def Check(self, request, context):
            checked(request.service)
            return super().Check(request, context)

    servicer = Servicer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"[::]:{PORT}")
    server.start()
    status = health_pb2.HealthCheckResponse
    while True:
        now = status.NOT_SERVING if is_("ill") else status.SERVING
        servicer.set("shop.Orders", now)
        time.sleep(0.02)


def serve_tcp():
    listener = None
    while True:
        if is_("ill"):
            if listener:
                listener.close()
                listener = None
            time.sleep(0.02)
            continue
        if not listener:
            listener = socket.create_server(("0.0.0.0", PORT))
            listener.settimeout(0.02)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        checked("connection")
        connection.close()


if KIND == "http":
    Server(("0.0.0.0", PORT), Handler).serve_forever()
elif KIND == "grpc":
    serve_grpc()
else:
    serve_tcp()
