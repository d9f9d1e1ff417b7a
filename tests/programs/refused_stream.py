"""A gRPC call whose caller keeps its side open, at a server that refuses it: how long until its status.

refused_stream.py HOST:PORT TRIES: prints the codes, and the shortest time in seconds.
"""

import json
import sys
import threading
import time

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_retries", 0)])
call = channel.stream_unary("/weft.test.Echo/ClientStream")


def once():
    ended = threading.Event()

    def messages():
        yield b"first"
        ended.wait(20)

    began = time.monotonic()
    try:
        call(messages(), timeout=15, wait_for_ready=True)
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    finally:
        ended.set()
    return code, time.monotonic() - began


# What the limit lets through.
channel.unary_unary("/weft.test.Echo/Unary")(b"x", timeout=20, wait_for_ready=True)
seen = [once() for _ in range(int(sys.argv[2]))]
print(json.dumps(dict(codes=sorted({code for code, _ in seen}), seconds=min(time for _, time in seen))))
