"""Requests at a steady rate, whatever becomes of them, some of them critical.

overload.py URL RATE SECONDS EVERY: every EVERY-th request is one to URL/critical. Prints one JSON object:
`default` and `critical` count what they were answered with, `STATUS:REASON`; `answered` and `refused` have
the milliseconds from when a request was due to the end of its answer, at the percentiles 50 and 99.
"""

import collections
import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

URL, RATE, SECONDS, EVERY = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
THREADS = 200
url = urlsplit(URL)
lock = threading.Lock()
counts = dict(default=collections.Counter(), critical=collections.Counter())
times = dict(answered=[], refused=[])
number = 0
BEGIN = time.time()


def run():
    global number
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    while True:
        with lock:
            mine, number = number, number + 1
        due = BEGIN + mine / RATE
        if max(due, time.time()) >= BEGIN + SECONDS:
            return
        time.sleep(max(0, due - time.time()))
        critical = mine % EVERY == 0
        try:
            connection.request("GET", "/critical" if critical else "/")
            response = connection.getresponse()
            response.read()
            status, reason = response.status, response.getheader("weft-reason") or ""
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            status, reason = 0, type(error).__name__
        took = (time.time() - due) * 1000
        with lock:
            counts["critical" if critical else "default"][f"{status}:{reason}"] += 1
            times["answered" if status == 200 else "refused"].append(took)


threads = [threading.Thread(target=run) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()


def percentiles(values):
    values = sorted(values)
    return [round(values[int(len(values) * share)], 1) for share in (0.5, 0.99)] if values else [0, 0]


print(json.dumps(counts | {kind: percentiles(values) for kind, values in times.items()}))
