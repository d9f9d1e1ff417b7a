"""The client for grpc_server.py: every kind of call and every way that a call ends.
Usage: grpc_client.py HOST:PORT"""

import json
import sys
import threading
import time

import grpc

from checks import equal, run

TARGET = sys.argv[1]
channel = grpc.insecure_channel(TARGET, options=[
    ("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20),
    ("grpc.enable_retries", 0)])
LIMIT = 20


def method(kind, name):
    return getattr(channel, kind)(f"/weft.test.Echo/{name}")


def status_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


def unary():
    reply = json.loads(method("unary_unary", "Unary")(b"hello", timeout=LIMIT))
    equal(reply["echo"], "hello")


def many_unary():
    call = method("unary_unary", "Big")
    for i in range(200):
        equal(call(str(i).encode(), timeout=LIMIT), str(i).encode())


def concurrent_unary():
    calls = [method("unary_unary", "Big").future(str(i).encode(), timeout=LIMIT) for i in range(200)]
    equal([call.result() for call in calls], [str(i).encode() for i in range(200)])


def metadata_both_ways():
    reply, call = method("unary_unary", "Unary").with_call(
        b"m", timeout=LIMIT, metadata=(("x-client", "a"), ("x-client-bin", b"\x00\x80\xff")))
    seen = json.loads(reply)["metadata"]
    equal((seen["x-client"], seen["x-client-bin"]), ("a", "0080ff"))
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    equal((initial["x-initial"], initial["x-initial-bin"]), ("first", b"\x00\xff"))
    equal((trailing["x-trailing"], trailing["x-trailing-bin"]), ("last", b"\x01\xfe"))


def client_streaming():
    reply = method("stream_unary", "ClientStream")((b"c" * 1000 for _ in range(500)), timeout=LIMIT)
    equal(json.loads(reply), dict(count=500, size=500_000))


def empty_client_stream():
    equal(json.loads(method("stream_unary", "ClientStream")(iter(()), timeout=LIMIT))["count"], 0)


def server_streaming():
    replies = list(method("unary_stream", "ServerStream")(b"500 1000 0", timeout=LIMIT))
    equal([int.from_bytes(r[:8], "big") for r in replies], list(range(500)))
    equal({len(r) for r in replies}, {1008})


def server_stream_is_not_collected():
    """The first message comes long before the last."""
    began = time.monotonic()
    stream = method("unary_stream", "ServerStream")(b"5 10 0.3", timeout=LIMIT)
    next(stream)
    assert time.monotonic() - began < 1.0, "the first message waited for the others"
    equal(len(list(stream)), 4)


def bidi_in_lock_step():
    """Each message is sent only when the answer to the one before has come."""
    answered = threading.Semaphore(1)

    def requests():
        for i in range(100):
            assert answered.acquire(timeout=LIMIT)
            yield str(i).encode()

    replies = []
    for reply in method("stream_stream", "Bidi")(requests(), timeout=LIMIT):
        replies.append(reply)
        answered.release()
    equal(replies, [b"re:%d" % i for i in range(100)])


def deadline_exceeded():
    began = time.monotonic()
    error = status_of(lambda: method("unary_unary", "Sleep")(b"5", timeout=0.5))
    took = time.monotonic() - began
    # grpc-go resets the stream when the deadline has passed by its own clock: to a client whose clock
    # is a moment behind, the call was cancelled.
    if error.code() != grpc.StatusCode.CANCELLED or took < 0.45:
        equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    assert took < 2.5, "much later than its deadline"


def deadline_reaches_the_server():
    left = json.loads(method("unary_unary", "Unary")(b"d", timeout=7))["deadline"]
    assert 0 < left <= 7.2, left


def cancellation_reaches_the_server():
    count = lambda: int(method("unary_unary", "Cancelled")(b"", timeout=LIMIT))
    before = count()
    calls = [method("unary_unary", "Sleep").future(b"10", timeout=15) for _ in range(5)]
    time.sleep(0.5)
    for call in calls:
        call.cancel()
    end = time.monotonic() + 5
    while count() < before + 5:
        assert time.monotonic() < end, f"{count() - before} of 5 cancellations arrived"
        time.sleep(0.05)


def cancelled_stream():
    stream = method("unary_stream", "ServerStream")(b"1000 10 0.05", timeout=LIMIT)
    next(stream)
    stream.cancel()
    equal(status_of(lambda: list(stream)).code(), grpc.StatusCode.CANCELLED)


def error_status_with_details():
    error = status_of(lambda: method("unary_unary", "Fail")(b"", timeout=LIMIT))
    equal((error.code(), error.details()), (grpc.StatusCode.FAILED_PRECONDITION, "no \u00e9 way: 100%\n"))
    equal(dict(error.trailing_metadata())["x-why"], "asked to")


def error_after_messages():
    stream = method("unary_stream", "FailMidway")(b"", timeout=LIMIT)
    equal(next(stream), b"one")
    equal(status_of(lambda: next(stream)).code(), grpc.StatusCode.DATA_LOSS)


def unknown_method():
    error = status_of(lambda: method("unary_unary", "Missing")(b"", timeout=LIMIT))
    equal(error.code(), grpc.StatusCode.UNIMPLEMENTED)


def large_messages():
    body = bytes(range(256)) * (8 << 12)  # 8 MiB
    equal(method("unary_unary", "Big")(body, timeout=60) == body, True)
    equal(len(method("unary_unary", "Big")(b"size:16777216", timeout=60)), 16 << 20)


def error_details():
    detail = b"\x0a\x18type.example/weft.Detail\x12\x06\x0a\x04what"
    wanted = b"\x08\x03\x12\x03bad\x1a" + bytes([len(detail)]) + detail
    error = status_of(lambda: method("unary_unary", "Details")(wanted, timeout=LIMIT))
    equal((error.code(), error.details()), (grpc.StatusCode.INVALID_ARGUMENT, "bad"))
    equal(dict(error.trailing_metadata())["grpc-status-details-bin"], wanted)


def compressed():
    body = b"0123456789abcdef" * (1 << 14)
    equal(method("unary_unary", "Big")(body, timeout=LIMIT, compression=grpc.Compression.Gzip) == body, True)


def keepalive():
    """PINGs every 300 ms during a silent call, and without one."""
    options = [("grpc.keepalive_time_ms", 300), ("grpc.keepalive_timeout_ms", 2000), ("grpc.enable_retries", 0),
               ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0)]
    with grpc.insecure_channel(TARGET, options=options) as pinging:
        sleep = pinging.unary_unary("/weft.test.Echo/Sleep")
        equal(sleep(b"2.5", timeout=LIMIT), b"slept")
        time.sleep(1)
        equal(sleep(b"0", timeout=LIMIT), b"slept")


def many_streams_at_once():
    streams = [method("unary_stream", "ServerStream")(b"20 100 0.02", timeout=LIMIT) for _ in range(40)]
    equal([len(list(s)) for s in streams], [20] * 40)


only = sys.argv[2:]
run([(c.__name__, c) for c in [
    unary, many_unary, concurrent_unary, metadata_both_ways, client_streaming, empty_client_stream,
    server_streaming, server_stream_is_not_collected, bidi_in_lock_step, deadline_exceeded,
    deadline_reaches_the_server, cancellation_reaches_the_server, cancelled_stream,
    error_status_with_details, error_after_messages, unknown_method, large_messages,
    error_details, compressed, keepalive, many_streams_at_once] if not only or c.__name__ in only])
