"""An application that fails in every way, and a client that sends what it is told to.

reasons.py serve: an application in HTTP/1.1 on 8080, one in HTTP/2 on 8082 that refuses each stream
(REFUSED_STREAM), one on 8083 that ends each connection without processing anything (GOAWAY), one on 8086 that
ends its first connection so when half of a request of 1 MiB has come and answers it afterwards, and an echo
on 8084 and 8085. It ignores SIGTERM. Paths of 8080:
  /slow*      answered after 30 s            /pause  answered after 1.5 s
  /reset      the connection is closed       /cut    and that within the answer's body
  /garbage    no HTTP is answered            /large  a head of 70 KiB is answered
  /up         101, and then an echo          /503    answered with 503
  /loopback   answered; from then on 8080 is listened to on 127.0.0.1 only
Anything else is answered with 200.

reasons.py ask SOCKET: waits on that Unix socket. A connection to it is one of TCP: a line of JSON,
{"host", "port", "send", "seconds"}, is answered with {"received", "error"} when a whole response
or the end of the connection has come, or after so many seconds. The TCP connection is open as long as
the one to the Unix socket; further lines, {"send", "seconds"}, send more on it and are answered alike.
"""

import json
import os
import signal
import socket
import struct
import sys
import threading
import time

HOLD = 30


def threads(listener, serve):
    """Serves each connection in a thread, until the listener is closed."""

    def run(connection):
        with connection:
            try:
                serve(connection)
            except OSError:
                pass

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=run, args=[connection], daemon=True).start()


def listening(port, host=""):
    return socket.create_server((host, port), backlog=128)


def head_of(connection, received):
    """Reads to the end of a head; nothing where the connection ends."""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        if not data:
            return None, b""
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


class Http:
    def __init__(self):
        self.listener = None

    def listen(self, host=""):
        self.listener = listening(8080, host)
        threading.Thread(target=threads, args=[self.listener, self.serve], daemon=True).start()

    def serve(self, connection):
        rest = b""
        while True:
            head, rest = head_of(connection, rest)
            if head is None:
                return
            path = head.split(" ")[1]
            for line in head.split("\r\n"):
                name, _, value = line.partition(":")
                if name.lower() == "content-length":
                    while len(rest) < int(value):
                        rest += connection.recv(65536)
                    rest = rest[int(value):]
            if not self.answer(connection, path):
                return

    def answer(self, connection, path):
        ok = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
        match path:
            case "/slow" | "/slow-broken":
                time.sleep(HOLD)
            case "/pause":
                time.sleep(1.5)
            case "/reset":
                return False
            case "/cut":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok\n")
                # Cut at once, the head would go with it (RFC 9113 section 5.4.2).
                time.sleep(0.5)
                return False
            case "/garbage":
                connection.sendall(b"220 mail.example ready\r\n")
                return False
            case "/large":
                ok = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n"
            case "/503":
                ok = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
            case "/up":
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
                echo(connection)
                return False
            case "/loopback":
                connection.sendall(ok)
                # On Linux a thread that accepts holds the socket open: it is woken first.
                self.listener.shutdown(socket.SHUT_RDWR)
                self.listener.close()
                self.listen("127.0.0.1")
                return False
        connection.sendall(ok)
        return True


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def exactly(connection, length):
    received = b""
    while len(received) < length:
        data = connection.recv(length - len(received))
        if not data:
            raise OSError("ended")
        received += data
    return received


def http2(refuse):
    """HTTP/2 in which every request is refused (RFC 9113 sections 5.4.2, 6.8 and 8.7)."""

    def serve(connection):
        exactly(connection, 24)
        connection.sendall(frame(4, 0, 0))
        while True:
            head = exactly(connection, 9)
            exactly(connection, int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == 4 and not flags & 1:
                connection.sendall(frame(4, 1, 0))
            elif kind == 6 and not flags & 1:
                connection.sendall(frame(6, 1, 0, bytes(8)))
            elif kind == 1:
                refuse(connection, stream)

    return serve


def refused_stream(connection, stream):
    connection.sendall(frame(3, 0, stream, struct.pack(">I", 7)))


def going_away(connection, _stream):
    connection.sendall(frame(7, 0, 0, struct.pack(">II", 0, 0)))


class GoingAwayLate:
    """HTTP/2 that ends its first connection without processing the request, of which it has taken much."""

    BODY = 1 << 20

    def __init__(self):
        self.ended = False

    def serve(self, connection):
        exactly(connection, 24)
        # SETTINGS_INITIAL_WINDOW_SIZE, and as much for the connection.
        connection.sendall(frame(4, 0, 0, struct.pack(">HI", 4, self.BODY)) + frame(8, 0, 0, struct.pack(">I", self.BODY)))
        taken = 0
        while True:
            head = exactly(connection, 9)
            length = int.from_bytes(head[:3], "big")
            exactly(connection, length)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == 4 and not flags & 1:
                connection.sendall(frame(4, 1, 0))
            elif kind == 0:
                taken += length
                if not self.ended and taken >= self.BODY // 2:
                    going_away(connection, stream)
                    self.ended = True
                elif flags & 1:
                    # `:status: 200` or `500` of the static table (RFC 7541, appendix A).
                    connection.sendall(frame(1, 5, stream, b"\x88" if taken == self.BODY else b"\x8e"))


def is_whole(received):
    head, blank, body = received.partition(b"\r\n\r\n")
    if not blank:
        return False
    fields = head.lower()
    if b" 101 " in head[:16]:
        return True
    if b"transfer-encoding: chunked" in fields:
        return body.endswith(b"0\r\n\r\n")
    for line in fields.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


def exchanged(connection, told):
    """Sends, and receives to the end of a response or of the connection, or of the time."""
    received, error = b"", ""
    end = time.monotonic() + told["seconds"]
    try:
        connection.sendall(told["send"].encode("latin-1"))
        while not is_whole(received) and time.monotonic() < end:
            connection.settimeout(max(0.01, end - time.monotonic()))
            data = connection.recv(65536)
            if not data:
                error = "closed"
                break
            received += data
    except OSError as failed:
        error = type(failed).__name__
    return received, error


def relay(asked):
    """One TCP connection, as it is told."""
    lines = asked.makefile("rw", encoding="utf-8", newline="\n")
    connection = None
    while line := lines.readline():
        told = json.loads(line)
        try:
            connection = connection or socket.create_connection((told["host"], told["port"]), timeout=20)
            received, error = exchanged(connection, told)
        except OSError as failed:
            received, error = b"", type(failed).__name__
        lines.write(json.dumps(dict(received=received.decode("latin-1"), error=error)) + "\n")
        lines.flush()
    if connection is not None:
        connection.close()


def main():
    if sys.argv[1] == "ask":
        path = sys.argv[2]
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path + ".new")
        listener.listen(64)
        os.rename(path + ".new", path)
        threads(listener, relay)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Http().listen()
    late = GoingAwayLate()
    for port, serve in [(8082, http2(refused_stream)), (8083, http2(going_away)), (8084, echo), (8085, echo),
                        (8086, late.serve)]:
        threading.Thread(target=threads, args=[listening(port), serve], daemon=True).start()
    while True:
        time.sleep(3600)


main()
