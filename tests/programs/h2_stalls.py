"""An application in HTTP/1.1, and clients in HTTP/2 that stall or are only slow (PyPI h2).

h2_stalls.py serve PORT: answers a POST with the length of its body; /early answers before it has read one; /big
has a body of 4 MiB, /poll/SECONDS waits before it answers, /events/COUNT/SECONDS sends events with pauses
between; /open says how many connections are open, the one that asks included.

h2_stalls.py body|early|read HOST PORT CONNECTIONS STREAMS: opens streams and stalls, with bodies that never come
(`early`: of which the answer has begun) or by not reading answers. Prints one JSON object: how often each
answer and each reset was seen. It waits until all streams have ended, or for 30 s; of `read` the windows are
opened after 10 s. Then it stays.

h2_stalls.py slow HOST PORT: an upload with a byte every second, a long poll and events, side by side. Prints what
came of each."""

import asyncio
import collections
import json
import re
import sys
import time

import h2.config
import h2.connection
import h2.events
import h2.settings

BIG = 4 << 20
opened = 0


async def body_of(reader, head):
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
    if length:
        return len(await reader.readexactly(int(length[1])))
    total = 0
    while b"\r\ntransfer-encoding: chunked" in head.lower():
        size = int(await reader.readuntil(b"\r\n"), 16)
        total += len(await reader.readexactly(size))
        await reader.readexactly(2)
        if not size:
            break
    return total


async def answer(reader, writer, head):
    path = head.split(b" ", 2)[1].decode()
    parts = path.strip("/").split("/")

    async def whole(text):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()

    if parts[0] == "open":
        return await whole(b"%d" % opened)
    if parts[0] == "early":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        await body_of(reader, head)
        writer.write(b"0\r\n\r\n")
    elif parts[0] == "big":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
        for _ in range(BIG >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
    elif parts[0] == "poll":
        await asyncio.sleep(float(parts[1]))
        await whole(b"polled")
    elif parts[0] == "events":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(int(parts[1])):
            await asyncio.sleep(float(parts[2]))
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    else:
        await whole(b"%d" % await body_of(reader, head))
    await writer.drain()


async def connection(reader, writer):
    global opened
    opened += 1
    try:
        while True:
            await answer(reader, writer, await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        opened -= 1
        writer.close()


async def serve(port):
    server = await asyncio.start_server(connection, None, int(port), backlog=1024)
    await server.serve_forever()


class Client:
    def __init__(self, reader, writer, window):
        self.reader, self.writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        initial = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        self.h2.initiate_connection()
        self.window = window
        self.streams = {}
        self.flush()

    @classmethod
    async def open(cls, host, port, window=65535):
        return cls(*await asyncio.open_connection(host, int(port)), window)

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    def ask(self, method, path, fields=(), end=True):
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "web"), (":path", path), *fields]
        self.h2.send_headers(stream, head, end_stream=end)
        self.streams[stream] = dict(answer=None, body=b"", end=None)
        self.flush()
        return stream

    def open_windows(self):
        for stream, seen in self.streams.items():
            if seen["end"] is None:
                self.h2.increment_flow_control_window(2 * BIG, stream)
        self.h2.increment_flow_control_window(1 << 30)
        self.window = 1
        self.flush()

    async def read(self):
        """Takes in what comes, until the connection ends."""
        while data := await self.reader.read(65536):
            for event in self.h2.receive_data(data):
                seen = self.streams.get(getattr(event, "stream_id", None))
                if seen is None:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    fields = dict(event.headers)
                    seen["answer"] = f"{fields[':status']}:{fields.get('weft-reason', '')}"
                elif isinstance(event, h2.events.DataReceived):
                    seen["body"] += event.data
                    if self.window and event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    seen["end"] = seen["end"] or "whole"
                elif isinstance(event, h2.events.StreamReset):
                    seen["end"] = seen["end"] or f"reset:{int(event.error_code)}"
            self.flush()
        for seen in self.streams.values():
            seen["end"] = seen["end"] or "closed"

    def is_done(self):
        return all(seen["end"] for seen in self.streams.values())


async def stall(what, host, port, connections, streams):
    clients = [await Client.open(host, port, 0 if what == "read" else 65535) for _ in range(int(connections))]
    reading = [asyncio.create_task(client.read()) for client in clients]
    for client in clients:
        for _ in range(int(streams)):
            if what == "read":
                client.ask("GET", "/big")
            else:
                client.ask("POST", "/" + what, [("content-length", "10")], end=False)
    began, is_open = time.monotonic(), False
    while not all(client.is_done() for client in clients) and time.monotonic() < began + 30:
        await asyncio.sleep(0.1)
        if what == "read" and not is_open and time.monotonic() > began + 10:
            is_open = True
            for client in clients:
                client.open_windows()
    seen = [one for client in clients for one in client.streams.values()]
    counts = collections.Counter(f"{one['answer'] or ''}:{one['end'] or 'open'}" for one in seen)
    print(json.dumps(counts), flush=True)
    await asyncio.gather(*reading)
    await asyncio.sleep(3600)


async def slow(host, port):
    client = await Client.open(host, port)
    reading = asyncio.create_task(client.read())
    await asyncio.sleep(0.2)
    upload = client.ask("POST", "/", end=False)
    poll, events = client.ask("GET", "/poll/7"), client.ask("GET", "/events/2/5")
    for _ in range(7):
        await asyncio.sleep(1)
        client.h2.send_data(upload, b"x")
        client.flush()
    client.h2.end_stream(upload)
    client.flush()
    while not client.is_done():
        await asyncio.sleep(0.05)
    for stream in (upload, poll, events):
        seen = client.streams[stream]
        print(seen["answer"], seen["end"], seen["body"].decode().split())
    reading.cancel()


WHAT = dict(serve=serve, slow=slow).get(sys.argv[1])
asyncio.run(WHAT(*sys.argv[2:]) if WHAT else stall(*sys.argv[1:]))
