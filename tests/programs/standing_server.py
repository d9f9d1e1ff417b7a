"""A server with connections that stand. Usage: standing_server.py PORT

GET /stream answers with a chunk every 100 ms without end. A request with `Upgrade` becomes a stream
of bytes: at /unread nobody reads it until it has ended, at /flood it writes without end, elsewhere it
echoes. Prints `flood full` when such a stream takes no more, and `flood closed` when it has ended. Any
other GET is answered with `ok`."""

import select
import socket
import sys
import threading
import time


def head(connection):
    bytes = b""
    while b"\r\n\r\n" not in bytes:
        more = connection.recv(4096)
        if not more:
            return None
        bytes += more
    return bytes.lower()


def flood(connection):
    connection.setblocking(False)
    full = False
    try:
        while True:
            _, writable, _ = select.select([], [connection], [], 1)
            if not writable and not full:
                full = True
                print("flood full", flush=True)
            if writable:
                connection.send(bytes(65536))
    except OSError:
        print("flood closed", flush=True)


def unread(connection):
    ended = select.poll()
    ended.register(connection, select.POLLRDHUP)
    ended.poll()


def serve(connection):
    try:
        while request := head(connection):
            if b"\nupgrade:" in request:
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n"
                                   b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n")
                if request.startswith(b"get /flood"):
                    return flood(connection)
                if request.startswith(b"get /unread"):
                    return unread(connection)
                while data := connection.recv(4096):
                    connection.sendall(data)
                return
            if request.startswith(b"get /stream"):
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    connection.sendall(b"4\r\ntick\r\n")
                    time.sleep(0.1)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
    except OSError:
        pass
    finally:
        connection.close()


listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6,
                                dualstack_ipv6=True, backlog=1024)
print("serving", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
