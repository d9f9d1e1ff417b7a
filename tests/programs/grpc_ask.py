"""Unary calls to grpc_server.py, and what was answered.

grpc_ask.py HOST:PORT METHOD [NAME:VALUE]…: METHOD is SERVICE/METHOD; prints JSON: the code, the reply
and the details.
"""

import json
import sys

import grpc

target, method, fields = sys.argv[1], sys.argv[2], sys.argv[3:]
channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])
metadata = [tuple(field.split(":", 1)) for field in fields]
answer = dict(code=0, reply=None, details="")
try:
    reply = channel.unary_unary("/" + method)(b"hi", timeout=20, metadata=metadata)
    answer["reply"] = json.loads(reply)
except grpc.RpcError as error:
    answer.update(code=error.code().value[0], details=error.details())
print(json.dumps(answer))
