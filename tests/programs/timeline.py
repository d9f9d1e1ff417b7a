"""Requests at a steady rate, whatever becomes of them, and what became of each.

timeline.py URL RATE BEGIN SECONDS: begins at BEGIN, seconds since the epoch, and prints for each
request a line `SECONDS-SINCE-BEGIN MILLISECONDS STATUS`; the status is 0 where there was none.
"""

import http.client
import sys
import threading
import time
from urllib.parse import urlsplit

URL, RATE, BEGIN, SECONDS = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
THREADS = 48
url = urlsplit(URL)
lock = threading.Lock()
lines = []
number = 0


def run():
    global number
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    while True:
        with lock:
            due = BEGIN + number / RATE
            number += 1
        if due >= BEGIN + SECONDS:
            return
        time.sleep(max(0, due - time.time()))
        # Counted from when it was due: who waits for a slow answer does not hide the next one.
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            response.read()
            status = response.status
        except OSError:
            connection.close()
            status = 0
        except http.client.HTTPException:
            connection.close()
            status = 0
        with lock:
            lines.append(f"{due - BEGIN:.3f} {(time.time() - due) * 1000:.1f} {status}")


threads = [threading.Thread(target=run) for _ in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("\n".join(lines))
