"""Connections that say something now and then, and then nothing.

silence.py serve PORT: a TCP echo.
silence.py tcp HOST PORT PAUSE: six times PAUSE and a word to the echo, then silence.
silence.py websocket HOST PORT PAUSE: the same with websocket_server.py.
silence.py reader HOST PORT PAUSE: /big/256, which it begins to read after PAUSE; words are MiB. More
  than all sockets on the way hold.
silence.py http HOST PORT PAUSE: two requests on one connection, with PAUSE between them.
What came of it is printed as JSON: how many words came back, how it ended, and after which silence.
"""

import asyncio
import http.client
import json
import socket
import socketserver
import sys
import time

LIMIT = 15


def serve(port):
    class Echo(socketserver.BaseRequestHandler):
        def handle(self):
            try:
                while data := self.request.recv(1000):
                    self.request.sendall(data)
            except ConnectionResetError:
                pass

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    Server(("0.0.0.0", port), Echo).serve_forever()


def tcp(host, port, pause):
    words = 0
    with socket.create_connection((host, port), timeout=LIMIT) as connection:
        for _ in range(6):
            time.sleep(pause)
            connection.sendall(b"word")
            words += connection.recv(4) == b"word"
        began = time.monotonic()
        try:
            ended = "data" if connection.recv(1) else "end"
        except ConnectionResetError:
            ended = "reset"
        except TimeoutError:
            ended = "open"
    return words, ended, time.monotonic() - began


async def websocket(host, port, pause):
    import websockets
    words = 0
    async with websockets.connect(f"ws://{host}:{port}/", ping_interval=None) as connection:
        for _ in range(6):
            await asyncio.sleep(pause)
            await connection.send("word")
            words += await connection.recv() == "word"
        began = time.monotonic()
        try:
            await asyncio.wait_for(connection.recv(), LIMIT)
            ended = "data"
        except websockets.ConnectionClosed:
            ended = "closed"
        except TimeoutError:
            ended = "open"
        return words, ended, time.monotonic() - began


def two_requests(host, port, pause):
    connection, words = http.client.HTTPConnection(host, port, timeout=LIMIT), 0
    for wait in (0, pause):
        time.sleep(wait)
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        words += response.status == 200
    return words, "end", 0


def late_reader(host, port, pause):
    connection, read = http.client.HTTPConnection(host, port, timeout=LIMIT), 0
    connection.request("GET", "/big/256")
    response = connection.getresponse()
    time.sleep(pause)
    began, ended = time.monotonic(), "end"
    try:
        while data := response.read1(1 << 20):
            read += len(data)
    except (ConnectionResetError, http.client.IncompleteRead):
        ended = "reset"
    if ended == "end" and read < 256 << 20:
        ended = "short"
    return read >> 20, ended, time.monotonic() - began


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
kind, host, port, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
if kind == "websocket":
    words, ended, after = asyncio.run(websocket(host, port, pause))
else:
    run = dict(tcp=tcp, http=two_requests, reader=late_reader)[kind]
    words, ended, after = run(host, port, pause)
print(json.dumps(dict(words=words, ended=ended, after=after)))
