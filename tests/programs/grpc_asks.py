"""Unary calls to grpc_server.py as a file says, and what was answered.

grpc_asks.py FILE: the file holds a JSON list of calls {"target", "method", "metadata", "times"}; printed
is a JSON list of lists of answers {"code", "reply", "details", "metadata"}, in the same order; the last
are the response's own fields.
"""

import json
import sys

import grpc


def call(channel, asked):
    stub = channel.unary_unary("/" + asked["method"])
    metadata = list(asked.get("metadata", {}).items())
    try:
        reply, done = stub.with_call(b"hi", timeout=20, metadata=metadata)
        fields = {name: value for name, value in done.initial_metadata() if isinstance(value, str)}
        return dict(code=0, reply=json.loads(reply), details="", metadata=fields)
    except grpc.RpcError as error:
        return dict(code=error.code().value[0], reply=None, details=error.details(), metadata={})


def ask(asked):
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(asked["target"], options=options) as channel:
        return [call(channel, asked) for _ in range(asked.get("times", 1))]


with open(sys.argv[1]) as file:
    print(json.dumps([ask(asked) for asked in json.load(file)]))
