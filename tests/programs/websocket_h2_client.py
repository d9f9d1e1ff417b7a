"""A client that speaks WebSocket over HTTP/2 (RFC 8441) to websocket_server.py or websocket_h2_server.py,
beside ordinary requests on the same connection. Usage: websocket_h2_client.py HOST PORT http1|http2"""

import os
import sys

from checks import equal, run
from websocket_h2 import CONNECT_PROTOCOL, Bytes, Client

HOST, PORT, SERVER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
client = Client(HOST, PORT)
# What an ordinary request is answered: a server of WebSocket alone asks for an upgrade.
PLAIN = {"http1": "426", "http2": "200"}[SERVER]


def neighbour():
    equal(client.get("/plain-page").head[":status"], PLAIN)


def it_is_announced():
    client.wait(lambda: CONNECT_PROTOCOL in client.settings)
    equal(client.settings[CONNECT_PROTOCOL], 1)
    neighbour()


def messages():
    number, stream = client.connect("/chat")
    equal(stream.head[":status"], "200")
    for name in ["upgrade", "connection", "sec-websocket-accept", "weft-reason"]:
        equal(stream.head.get(name), None)
    for message in ["hello", "\u00e9\u4e16", b"\x00\xff", os.urandom(70_000), os.urandom(3 << 20)]:
        client.say(number, stream, message)
        sent = message.encode() if isinstance(message, str) else message
        equal(client.hear(stream) == sent, True)
        neighbour()


def many_at_once():
    streams = [client.connect("/chat") for _ in range(20)]
    for turn in range(5):
        for number, stream in streams:
            client.say(number, stream, f"{number}.{turn}")
        for number, stream in streams:
            equal(client.hear(stream), f"{number}.{turn}".encode())
    neighbour()


def a_key_of_the_client_is_replaced():
    number, stream = client.connect("/chat", more=[("sec-websocket-key", "bm90IG91cnM=")])
    equal(stream.head[":status"], "200")
    client.say(number, stream, "hello")
    equal(client.hear(stream), b"hello")


def the_server_closes():
    number, stream = client.connect("/chat")
    client.say(number, stream, "close please")
    client.wait(lambda: any(frame.opcode == 8 for frame in stream.frames))
    with client.changed:
        rest = b"".join(stream.protocol.data_to_send())
    client.send(number, rest, end=True)
    client.wait(lambda: stream.over)
    equal(stream.over, "end")
    neighbour()


def the_client_resets():
    number, stream = client.connect("/chat")
    with client.changed:
        client.h2.reset_stream(number, 8)
        client.flush()
    neighbour()


def the_server_refuses():
    _, stream = client.connect("/forbidden")
    client.wait(lambda: stream.over)
    equal((stream.head[":status"], stream.data), ("403", b"not here"))
    neighbour()


def a_server_that_does_not_switch():
    if SERVER == "http2":
        return
    _, stream = client.connect("/ignored")
    client.wait(lambda: stream.over)
    equal((stream.head[":status"], stream.head.get("weft-reason")), ("502", "upgrade-failed"))
    equal(b"instead of switching" in stream.data, True)
    neighbour()


def other_protocols():
    for protocol, status, reason in [("h2c", "501", "upgrade-failed"), ("HTTP/2.0", "501", "upgrade-failed"),
                                     ("a b", "400", "bad-request"), ("websocket, x", "400", "bad-request")]:
        _, stream = client.connect("/chat", protocol, Bytes())
        equal((protocol, stream.head[":status"], stream.head.get("weft-reason")), (protocol, status, reason))
    number, stream = client.connect("/masque", "connect-udp", Bytes(), [("capsule-protocol", "?1")])
    if SERVER == "http2":
        equal((stream.head[":status"], stream.head["x-protocol"]), ("200", "connect-udp"))
        client.send(number, b"capsules")
        client.wait(lambda: stream.data == b"capsules")
    else:
        # A server that does not know it refuses or ignores it.
        equal(stream.head[":status"][0] in "45", True)
    neighbour()


def user_information():
    client.authority, kept = f"user@{HOST}:{PORT}", client.authority
    try:
        stream = client.get("/")
    finally:
        client.authority = kept
    equal((stream.head[":status"], stream.head.get("weft-reason")), ("400", "bad-request"))


run([(c.__name__, c) for c in [it_is_announced, messages, many_at_once, a_key_of_the_client_is_replaced,
                               the_server_closes, the_client_resets, the_server_refuses,
                               a_server_that_does_not_switch, other_protocols, user_information]])
