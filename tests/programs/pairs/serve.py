"""Starts every server of the pairs and opens the first port once all of them listen. A server has two ports:
one of which the mesh is told nothing, and one that is declared (ten above).
Usage: serve.py DIRECTORY GO-BINARY JAVA-CLASSES"""

import http.server
import os
import signal
import socket
import subprocess
import sys
import time

DIRECTORY, GO, JAVA = sys.argv[1:4]
HERE = os.path.dirname(os.path.abspath(__file__))
READY = 8100


def nginx():
    """nginx in HTTP/1.1 and in HTTP/2, all defaults that can be left."""
    www = f"{DIRECTORY}/www"
    os.makedirs(www, exist_ok=True)
    for size in (0, 1, 1000, 1048576, 4194304):
        with open(f"{www}/{size}", "wb") as file:
            file.write(b"0123456789abcdef" * (size // 16) + b"0123456789abcdef"[:size % 16])
        os.utime(f"{www}/{size}", (1e9, 1e9))
    places = " ".join(f"{module}_temp_path {DIRECTORY}/{module};"
                      for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    statuses = "".join(f"if ($arg_code = {code}) {{ return {code}; }} "
                       for code in (204, 304, 301, 401, 404, 418, 500, 503))
    report = (r"method $request_method\ntarget $request_uri\n"
              r"field cookie: $http_cookie\nfield host: $http_host\nfield x-twice: $http_x_twice\n"
              r"field x-empty: $http_x_empty\nfield x-blanks: $http_x_blanks\nfield x-big: $http_x_big\n")
    locations = (f"location /report {{ return 200 \"{report}\"; }} "
                 f"location = /bytes {{ alias {www}/$arg_n; etag off; max_ranges 1; }} "
                 "location = /chunked { gzip on; gzip_proxied any; gzip_types *; gzip_min_length 1; "
                 f"alias {www}/$arg_n; }} "
                 f"location = /status {{ add_header etag '\"a\"' always; {statuses} }} "
                 "location = /early { client_max_body_size 1k; root /nonexistent; } "
                 "location = /cookies { add_header set-cookie a=1; add_header set-cookie b=2; return 200 c; }")
    config = (f"daemon off; master_process off; pid {DIRECTORY}/nginx.pid; error_log stderr crit; "
              "events { worker_connections 2000; }\n"
              f"http {{ access_log off; {places}\n"
              f"server {{ listen [::]:8106 ipv6only=off; listen [::]:8116 ipv6only=off; {locations} }}\n"
              f"server {{ listen [::]:8107 http2 ipv6only=off; listen [::]:8117 http2 ipv6only=off; {locations} }} }}\n")
    with open(f"{DIRECTORY}/pairs.conf", "w") as file:
        file.write(config)
    return ["nginx", "-c", f"{DIRECTORY}/pairs.conf", "-e", "stderr"]


PROGRAMS = [
    (["node", f"{HERE}/server.js", "http", "0"], [8101, 8111]),
    (["node", f"{HERE}/server.js", "http2", "0"], [8102, 8112]),
    ([GO, "server", "0"], [8103, 8113, 8123]),
    (["java", "-XX:TieredStopAtLevel=1", "-Dsun.net.httpserver.nodelay=true", "-cp", JAVA, "Server"], [8104, 8114]),
    ([sys.executable, f"{HERE}/server.py"], [8105, 8115]),
    ([GO, "server", "1200"], [8121]),
    (["node", f"{HERE}/server.js", "http", "1200"], [8122]),
]


def start(command):
    subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command])


def listens(port):
    with socket.socket(socket.AF_INET) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for command, ports in PROGRAMS:
    start([*command, *map(str, ports)])
start(nginx())
for port in [port for _, ports in PROGRAMS for port in ports] + [8106, 8107, 8116, 8117]:
    while not listens(port):
        time.sleep(0.05)
server = http.server.ThreadingHTTPServer(("", READY), http.server.BaseHTTPRequestHandler)
print("serving", flush=True)
server.serve_forever()
