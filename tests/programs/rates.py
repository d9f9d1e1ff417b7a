"""Asks again and again at a rate, and prints how many were let through.

rates.py URL RATE SECONDS: a line of JSON for every second: {"passed", "refused", "other"}.
"""

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

url, rate, seconds = urlsplit(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=20)
began = time.monotonic()
for second in range(seconds):
    counted = {"passed": 0, "refused": 0, "other": 0}
    for turn in range(rate):
        due = began + second + turn / rate
        time.sleep(max(0, due - time.monotonic()))
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            kind = {200: "passed", 429: "refused"}.get(response.status, "other")
        except OSError:
            kind = "other"
            connection.close()
        counted[kind] += 1
    print(json.dumps(counted), flush=True)
