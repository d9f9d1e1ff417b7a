"""Connections that stand, each of another kind. Usage:
  standing_client.py KIND=HOST:PORT...

KIND is `http` (a response without end), `upgrade` (an echo of bytes), `redis` (a PING now and then),
`unread` (an upgraded stream of which the server reads nothing, written to until it takes no more) or
`flood` (one of which the client reads nothing). Prints `up` when all stand, `KIND closed` when one has
ended, and `KIND alive` four times a second for each of the first three that has just been used."""

import select
import socket
import sys
import threading
import time

speaking = threading.Lock()


def say(line):
    """Prints a line, whole: `print` writes its end by itself, after that of another thread."""
    with speaking:
        print(line, flush=True)


together = threading.Barrier(len(sys.argv))


def upgrade(connection, host, path="/echo"):
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\n"
                       "Upgrade: echo\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(4096) or sys.exit("no answer to the upgrade")
    assert answer.startswith(b"HTTP/1.1 101 "), answer


def stream(connection, host):
    connection.sendall(f"GET /stream HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def unread(connection, host):
    upgrade(connection, host, "/unread")
    connection.setblocking(False)
    while select.select([], [connection], [], 1)[1]:
        connection.send(bytes(65536))


def flood(connection, host):
    upgrade(connection, host, "/flood")


def stand_still(kind, connection):
    if kind == "unread":
        try:
            select.select([connection], [], [])
            data = connection.recv(1)
        except OSError:
            data = b""
        assert not data, data
        say(f"{kind} closed")
    else:
        threading.Event().wait()


def stand(kind, host, port):
    connection = socket.create_connection((host, port), timeout=20)
    if kind in ("unread", "flood"):
        {"unread": unread, "flood": flood}[kind](connection, host)
        together.wait()
        return stand_still(kind, connection)
    begin = {"http": stream, "upgrade": upgrade, "redis": lambda connection, host: None}[kind]
    begin(connection, host)
    together.wait()
    # However long the other side is silent: it is the end that is waited for.
    connection.settimeout(None)
    ask = {"http": b"", "upgrade": b"more", "redis": b"PING\r\n"}[kind]
    try:
        while True:
            connection.sendall(ask)
            if not connection.recv(4096):
                break
            say(f"{kind} alive")
            time.sleep(0.25)
    except OSError:
        pass
    say(f"{kind} closed")


for argument in sys.argv[1:]:
    kind, target = argument.split("=")
    host, port = target.rsplit(":", 1)
    threading.Thread(target=stand, args=(kind, host, int(port))).start()
together.wait()
say("up")
