"""A client whose ClientHello is late. Usage: late_hello.py HOST PORT NAME; late_hello.py echo PORT sends back what
comes.

Prints what comes back of a ClientHello that is sent after a pause, of one in two pieces, and of none at all."""

import socket
import ssl
import sys
import threading
import time


def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)


if sys.argv[1] == "echo":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

host, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def hello():
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(received, sent, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()


def ask(pieces, size):
    sock = socket.create_connection((host, port), timeout=20)
    try:
        for pause, piece in pieces:
            time.sleep(pause)
            sock.sendall(piece)
        came = b""
        while len(came) < size and (more := sock.recv(65536)):
            came += more
        return came
    except OSError as error:
        return type(error).__name__.encode()


whole = hello()
for what, pieces in (("late", [(1, whole)]), ("pieces", [(0, whole[:100]), (1, whole[100:])])):
    came = ask(pieces, len(whole))
    print(what, "whole" if came == whole else came[:99].decode("latin-1"), flush=True)
print("none", ask([], 1).decode(), flush=True)
print("part", ask([(0, whole[:100])], 1).decode(), flush=True)
