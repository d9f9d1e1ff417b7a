#!/usr/bin/env python3
"""Instructions that one request takes in both sidecars of a pair, counted by callgrind.

Usage: tests/bench/instructions.py WEFT [--requests N] [--keep DIRECTORY]

WEFT is the binary, built for release; valgrind must be installed. Every request is the same: a GET over
HTTP/1.1 with seven fields, answered with six fields and 128 bytes, on connections that stand. Copies
count by the byte where the processor has one instruction for them. `--keep` keeps callgrind's files,
for `callgrind_annotate`. Everything listens on loopback."""

import argparse
import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from attacked import Processes, connects, free_port, wait_for

REQUEST = (b"GET /api/items/42?q=1 HTTP/1.1\r\nHost: app\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
           b"Accept: */*\r\nAccept-Encoding: gzip\r\nCookie: session=0123456789abcdef\r\n"
           b"X-Request-Id: 7d9f\r\n\r\n")
ANSWER = (b"HTTP/1.1 200 OK\r\nServer: app\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n"
          b"Content-Type: text/plain\r\nContent-Length: 128\r\nConnection: keep-alive\r\n"
          b"Cache-Control: no-cache\r\n\r\n" + b"x" * 128)
LIMIT = 300


def application(listener):
    def serve(sock):
        received = b""
        while data := sock.recv(65536):
            received += data
            while b"\r\n\r\n" in received:
                received = received.split(b"\r\n\r\n", 1)[1]
                sock.sendall(ANSWER)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def ask(sock):
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"x" * 128):
        data = sock.recv(65536)
        if not data:
            raise OSError(f"closed after {answer!r}")
        answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"refused: {answer!r}")


def answered(port):
    """A connection on which the first request was answered."""
    with contextlib.suppress(OSError):
        sock = socket.create_connection(("127.0.0.1", port), timeout=60)
        try:
            ask(sock)
            return sock
        except OSError:
            sock.close()
    return None


def under_callgrind(directory):
    """The sidecars: processes of callgrind that write into the directory."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"--tool=callgrind" in command and str(directory).encode() in command:
                found.append(entry.name)
    return found


def control(directory, *what):
    for pid in under_callgrind(directory):
        subprocess.run(["callgrind_control", *what, pid], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)


def counted(files):
    """Instructions by sidecar; the thread that serves requests is the one with most of them."""
    totals = {}
    for file in files:
        found = re.search(r"^(?:totals|summary): (\d+)", file.read_text(), re.M)
        count = int(found[1]) if found else 0
        # What was counted while instrumentation was switched on wraps around.
        if count < 1 << 40:
            side = file.name.split(".")[0]
            totals[side] = max(totals.get(side, 0), count)
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        sys.exit("SKIPPED: valgrind is not on this machine")
    weft = args.weft.resolve()
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-instructions-")))
        counts = directory / "counts"
        counts.mkdir()
        data = directory / "data"
        processes = Processes(directory, stack, WEFT_CONTROL_PLANE=f"unix:{data}", WEFT_WORKERS="1")
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=application, args=(listener,), daemon=True).start()
        app, asked, plane = listener.getsockname()[1], free_port(), free_port()
        processes.start("control-plane", [weft, "control-plane", "--listen", f"127.0.0.1:{plane}",
                                          "--metrics-listen", "127.0.0.1:0", "--data-dir", data])
        wait_for("the control plane", lambda: connects(plane))
        for name, flags in [("server", ["--name", "app", "--port", f"{app}:http@loopback"]),
                            ("client", ["--name", "load", "--upstream", f"app=127.0.0.1:{asked}"])]:
            processes.start(name, ["valgrind", "--tool=callgrind", "--trace-children=yes", "--instr-atstart=no",
                                   "--separate-threads=yes", f"--callgrind-out-file={counts}/{name}.%p",
                                   weft, "run", "--capture", "none", "--no-isolation", "--namespace", "bench", *flags,
                                   "--", "sleep", "infinity"])
        with wait_for("an answer", lambda: answered(asked), LIMIT) as sock:
            # Connections, buffers and tables are there before anything is counted.
            for _ in range(200):
                ask(sock)
            control(directory, "--instr=on")
            for _ in range(50):
                ask(sock)
            control(directory, "--zero")
            for _ in range(args.requests):
                ask(sock)
            time.sleep(1)
            control(directory, "--dump")
            time.sleep(3)
        files = list(counts.glob("*-*"))
        if args.keep:
            shutil.copytree(counts, args.keep, dirs_exist_ok=True)
        totals = {side: round(count / args.requests) for side, count in counted(files).items()}
    print(json.dumps(dict(requests=args.requests, instructions_per_request=totals, both=sum(totals.values()))))


if __name__ == "__main__":
    main()
