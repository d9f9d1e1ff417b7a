"""Slow calls to grpc_server.py, and how many of them the server saw.

grpc_slow.py HOST:PORT CALLS SECONDS EXPECTED: makes CALLS calls of SECONDS each, one after the
other, and waits until the server has seen the end of EXPECTED, at most 3 s; prints JSON: how many
were answered, and how many the server has seen end, since it runs.
"""

import json
import sys
import time

import grpc

target, calls, seconds, expected = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])


def call(name, request):
    return channel.unary_unary("/weft.test.Echo/" + name)(request.encode(), timeout=20)


answered = sum(call("Sleep", seconds) == b"slept" for _ in range(calls))
until = time.monotonic() + 3
# However they ended: no code was set for them.
while (ended := int(call("Cancelled", ""))) < expected and time.monotonic() < until:
    time.sleep(0.1)
print(json.dumps(dict(answered=answered, ended=ended)))
