"""Asks again and again at a rate, and prints how many were let through.

rates.py URL RATE SECONDS: a line of JSON for every second: {"passed", "refused", "other"}.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

CONNECTIONS = 8
url, rate, seconds = urlsplit(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
lock = threading.Lock()
counted = [{"passed": 0, "refused": 0, "other": 0} for _ in range(seconds)]
turns = iter(range(rate * seconds))
began = time.monotonic()


def ask():
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=20)
    while True:
        with lock:
            turn = next(turns, None)
        if turn is None:
            return
        due = turn / rate
        late = time.monotonic() - began - due
        # What cannot be asked in its second is not asked.
        if late > 1:
            continue
        time.sleep(max(0, -late))
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            kind = {200: "passed", 429: "refused"}.get(response.status, "other")
        except OSError:
            kind = "other"
            connection.close()
        second = min(int(time.monotonic() - began), seconds - 1)
        with lock:
            counted[second][kind] += 1


threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
for thread in threads:
    thread.start()
for second in range(seconds):
    time.sleep(max(0, began + second + 1 - time.monotonic()))
    if second == seconds - 1:
        for thread in threads:
            thread.join()
    with lock:
        print(json.dumps(counted[second]), flush=True)
