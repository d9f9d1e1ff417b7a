"""Very small pieces of bodies that nobody reads. Usage:
small_pieces.py serve PORT          an HTTP/1.1 server: `/pieces` is answered with chunks of one byte, `/hold`
                                    after it is told `/release`, `/plain` at once
small_pieces.py ask HOST PORT COUNT asks for the pieces in HTTP/2 and does not read them, beside `/hold`.
                                    Prints what became of that and of `/plain`"""

import socket
import sys
import threading

RELEASED = threading.Event()
SENT = threading.Event()


def serve(sock):
    kept = b""
    while True:
        while b"\r\n\r\n" not in kept:
            data = sock.recv(65536)
            if not data:
                return
            kept += data
        head, kept = kept.split(b"\r\n\r\n", 1)
        path = head.split(b" ")[1].decode()
        plain = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain"
        if path.startswith("/pieces"):
            sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            sock.settimeout(3)
            try:
                for _ in range(int(path.split("?")[1]) // 1000):
                    sock.sendall(b"1\r\nx\r\n" * 1000)
            except OSError:
                pass
            SENT.set()
            RELEASED.wait(120)
            return sock.close()
        if path == "/sent":
            SENT.wait(120)
        elif path == "/release":
            RELEASED.set()
        elif path == "/hold":
            RELEASED.wait(120)
        sock.sendall(plain)


if sys.argv[1] == "serve":
    listener = socket.create_server(("", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        accepted, _ = listener.accept()
        threading.Thread(target=serve, args=[accepted], daemon=True).start()

import h2.events

from websocket_h2 import Bytes, Client

host, port, count = sys.argv[2], int(sys.argv[3]), sys.argv[4]
client = Client(host, port)


class Unread(Bytes):
    pass


def on_event(event, on_request, inner=client.on_event):
    stream = client.streams.get(getattr(event, "stream_id", None))
    if isinstance(event, h2.events.DataReceived) and isinstance(stream, Unread):
        return
    inner(event, on_request)


client.on_event = on_event


def begin(path, stream, method):
    with client.changed:
        number = client.h2.get_next_available_stream_id()
        client.streams[number] = stream
        client.h2.send_headers(number, [(":method", method), (":scheme", "http"), (":path", path),
                                        (":authority", client.authority)], end_stream=True)
        client.flush()
    return stream


def status(stream):
    client.wait(lambda: stream.over, 100)
    return f"{stream.head and stream.head[':status']}:{stream.head and stream.head.get('weft-reason')}"


held = begin("/hold", Bytes(), "POST")
unread = begin(f"/pieces?{count}", Unread(), "GET")
print("sent", status(begin("/sent", Bytes(), "POST")))
print("plain", status(begin("/plain", Bytes(), "POST")))
print("release", status(begin("/release", Bytes(), "POST")))
print("hold", status(held))
print("unread", unread.over)
