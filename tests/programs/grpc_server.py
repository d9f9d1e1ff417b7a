"""A grpcio server with every kind of call, on raw bytes (nothing generated).
Usage: grpc_server.py [BIND:]PORT [NAME]   (an IPv6 address in brackets)"""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

NAME = sys.argv[2] if len(sys.argv) > 2 else ""
cancelled = 0
lock = threading.Lock()


def count_cancel(context):
    def on_end():
        global cancelled
        if not context.is_active() and context.code() is None:
            with lock:
                cancelled += 1
    context.add_callback(on_end)


def unary(request, context):
    metadata = {k: v if isinstance(v, str) else v.hex() for k, v in context.invocation_metadata()}
    context.send_initial_metadata((("x-initial", "first"), ("x-initial-bin", b"\x00\xff")))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-trailing-bin", b"\x01\xfe")))
    left = context.time_remaining()
    return json.dumps(dict(echo=request.decode(), metadata=metadata, deadline=left, peer=context.peer(), name=NAME)).encode()


def big(request, context):
    """Echoes; with a request `size:N`, answers N bytes."""
    if request.startswith(b"size:"):
        return b"z" * int(request[5:])
    return request


def client_stream(requests, context):
    count = size = 0
    for request in requests:
        count += 1
        size += len(request)
    return json.dumps(dict(count=count, size=size)).encode()


def server_stream(request, context):
    """`COUNT SIZE PAUSE-SECONDS`"""
    count, size, pause = request.decode().split()
    for number in range(int(count)):
        yield number.to_bytes(8, "big") + b"s" * int(size)
        time.sleep(float(pause))


def bidi(requests, context):
    for request in requests:
        yield b"re:" + request


def sleep(request, context):
    count_cancel(context)
    end = time.monotonic() + float(request)
    while time.monotonic() < end and context.is_active():
        time.sleep(0.01)
    return b"slept"


def fail(request, context):
    context.set_trailing_metadata((("x-why", "asked to"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no \u00e9 way: 100%\n")


def fail_midway(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "midway")


def details(request, context):
    """Fails as the request says: a serialized google.rpc.Status of code 3, message `bad`."""
    context.set_trailing_metadata((("grpc-status-details-bin", request),))
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")


def how_many_cancelled(request, context):
    return str(cancelled).encode()


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Big": grpc.unary_unary_rpc_method_handler(big),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Sleep": grpc.unary_unary_rpc_method_handler(sleep),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailMidway": grpc.unary_stream_rpc_method_handler(fail_midway),
    "Details": grpc.unary_unary_rpc_method_handler(details),
    "Cancelled": grpc.unary_unary_rpc_method_handler(how_many_cancelled),
}


def main():
    where = sys.argv[1] if ":" in sys.argv[1] else f"[::]:{sys.argv[1]}"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=[
        ("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20),
        ("grpc.http2.min_ping_interval_without_data_ms", 100)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("weft.test.Echo", METHODS)])
    if not server.add_insecure_port(where):
        sys.exit(f"cannot listen on {where}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


main()
