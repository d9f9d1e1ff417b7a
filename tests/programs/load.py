"""Continuous load, until a file appears. Usage:
  load.py http URL STATE-DIR [--connections N] [--rate PER-SECOND]
  load.py grpc HOST:PORT STATE-DIR [--connections N] [--rate PER-SECOND]

STATE-DIR/status.json is replaced twice a second with the totals so far (`requests`, `failures`,
`errors`: the first few); STATE-DIR/latencies holds `seconds-since-start milliseconds` per request.
It ends when STATE-DIR/stop exists and prints the totals."""

import argparse
import http.client
import json
import os
import threading
import time
from urllib.parse import urlsplit

options = argparse.ArgumentParser()
options.add_argument("kind", choices=["http", "grpc"])
options.add_argument("target")
options.add_argument("state")
options.add_argument("--connections", type=int, default=4)
options.add_argument("--rate", type=float, default=50)
options = options.parse_args()

BEGAN = time.time()
lock = threading.Lock()
totals = dict(requests=0, failures=0, errors=[])
latencies = []


def http_requests():
    """A function that makes one request on a kept-alive connection of its own."""
    url = urlsplit(options.target)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)

    def one():
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status} {response.getheader('weft-reason')}")
        except Exception:
            connection.close()  # the next request connects anew
            raise
    return one


def grpc_requests():
    import grpc
    channel = grpc.insecure_channel(options.target, options=[
        ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])
    call = channel.unary_unary("/weft.test.Echo/Big")

    def one():
        if call(b"load", timeout=20) != b"load":
            raise RuntimeError("another answer")
    return one


def worker(make):
    one, pause = make(), options.connections / options.rate
    due = time.monotonic()
    while not os.path.exists(f"{options.state}/stop"):
        due = max(due + pause, time.monotonic() - 1)
        time.sleep(max(0, due - time.monotonic()))
        start, error = time.perf_counter(), None
        try:
            one()
        except Exception as caught:
            error = f"{time.time() - BEGAN:.3f} s: {type(caught).__name__}: {caught}"[:300]
        took = (time.perf_counter() - start) * 1000
        with lock:
            totals["requests"] += 1
            latencies.append((time.time() - BEGAN, took))
            if error:
                totals["failures"] += 1
                totals["errors"] = (totals["errors"] + [error])[:10]


def save():
    with lock:
        status, fresh = json.dumps(totals), latencies[:]
        latencies.clear()
    with open(f"{options.state}/latencies", "a") as file:
        file.writelines(f"{when:.3f} {took:.3f}\n" for when, took in fresh)
    with open(f"{options.state}/status.new", "w") as file:
        file.write(status)
    os.replace(f"{options.state}/status.new", f"{options.state}/status.json")


os.makedirs(options.state, exist_ok=True)
make = dict(http=http_requests, grpc=grpc_requests)[options.kind]
workers = [threading.Thread(target=worker, args=(make,), daemon=True) for _ in range(options.connections)]
for thread in workers:
    thread.start()
while any(thread.is_alive() for thread in workers):
    time.sleep(0.5)
    save()
save()
print(json.dumps(totals), flush=True)
