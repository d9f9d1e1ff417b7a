"""Changes of a policy at a steady rate, over the control plane's admin socket.

changes.py SOCKET COUNT RATE: each one is a TrafficPolicy for the Service web of shop; prints how many
were made and how long that took. Fails when one is refused.
"""

import http.client
import json
import socket
import sys
import threading
import time

SOCKET, COUNT, RATE = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
KINDS = ["peakEwma", "leastRequest", "roundRobin", "random"]
lock = threading.Lock()
number = 0
refused = []
BEGAN = time.time()


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def document(n):
    return json.dumps({
        "apiVersion": "weft-mesh.io/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "targetRef": {"kind": "Service", "name": "web"},
            "loadBalancer": {"type": KINDS[n % 4]},
            "circuitBreaker": {"consecutiveFailures": 3 + n % 5},
            "limits": {"concurrentRequests": 100 + n % 1000},
        },
    })


def run():
    global number
    connection = Connection("localhost")
    while True:
        with lock:
            n = number
            number += 1
        if n >= COUNT or refused:
            return
        time.sleep(max(0, BEGAN + n / RATE - time.time()))
        connection.request("POST", "/v1/apply", document(n))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            refused.append((response.status, body))
            return


threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if refused:
    sys.exit(f"refused: {refused}")
print(f"{COUNT} changes in {time.time() - BEGAN:.1f} s")
