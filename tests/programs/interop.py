"""Runs cases of grpc-go's interoperability tests, some at a time; prints one JSON object: case -> "ok" or what it
complained of.
Usage: interop.py PROGRAM HOST:PORT CASE..."""

import concurrent.futures
import json
import subprocess
import sys

PROGRAM, TARGET, *CASES = sys.argv[1:]


def run(case):
    try:
        ran = subprocess.run([PROGRAM, "interop", TARGET, case], capture_output=True, text=True, timeout=110)
    except subprocess.TimeoutExpired:
        return case, "no end after 110 s"
    return case, "ok" if ran.returncode == 0 else (ran.stderr or f"exit code {ran.returncode}")[-600:]


with concurrent.futures.ThreadPoolExecutor(4) as threads:
    print(json.dumps(dict(threads.map(run, CASES))))
