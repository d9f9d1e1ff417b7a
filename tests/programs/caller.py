"""Asks again and again, until it is ended. Usage: caller.py URL FILE [EVERY-SECONDS]

FILE gets a line `STATUS BODY` for each answer; the status is 0 where there was none. It listens at port
9000, so that its sidecar is one that metrics are read of.
"""

import http.client
import socket
import sys
import time
from urllib.parse import urlsplit

url = urlsplit(sys.argv[1])
every = float(sys.argv[3]) if len(sys.argv) > 3 else 0.02
connection = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
listener = socket.create_server(("0.0.0.0", 9000))
with open(sys.argv[2], "w", buffering=1) as answers:
    while True:
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            answer = f"{response.status} {response.read().decode(errors='replace').strip()[:60]}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            answer = f"0 {type(error).__name__}"
        answers.write(answer.replace("\n", " ") + "\n")
        time.sleep(every)
