"""Runs named checks and prints their results as one JSON object: name -> "ok" or what went wrong."""

import json
import sys
import traceback


def run(checks):
    results = {}
    for name, check in checks:
        try:
            check()
            results[name] = "ok"
        except Exception as error:  # every failure is a result
            where = traceback.extract_tb(error.__traceback__)[-1]
            results[name] = f"{type(error).__name__}: {error} (line {where.lineno}: {where.line})"
    print(json.dumps(results), flush=True)
    sys.exit(0 if all(result == "ok" for result in results.values()) else 1)


def equal(found, expected):
    if found != expected:
        raise AssertionError(f"found {found!r}, expected {expected!r}")
