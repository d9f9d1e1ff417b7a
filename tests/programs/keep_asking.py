"""One request after the other on one HTTP connection.

keep_asking.py URL PAUSE FILE: appends to the file, line by line, the name that echo.py answers with, or
what went wrong; until it is ended.
"""

import http.client
import json
import sys
import time
from urllib.parse import urlsplit

url, pause = urlsplit(sys.argv[1]), float(sys.argv[2])
connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=20)
with open(sys.argv[3], "a", buffering=1) as file:
    while True:
        try:
            connection.request("GET", url.path or "/")
            response = connection.getresponse()
            body = response.read()
            file.write(f"{json.loads(body)['name'] if response.status == 200 else response.status}\n")
        except OSError as error:
            file.write(f"{error!r}\n")
            connection.close()
        time.sleep(pause)
