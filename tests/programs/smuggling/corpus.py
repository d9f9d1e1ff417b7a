"""The corpora: http1.txt says how they are written."""

import pathlib
import re

ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


def plain(text):
    """Bytes without escapes."""
    def one(found):
        return bytes([int(found[1][1:], 16)]).decode("latin-1") if found[1][0] == "x" else ESCAPES[found[1]].decode()
    return re.sub(r"\\(x[0-9a-f]{2}|[rnt0\\])", one, text).encode("latin-1")


def filled(text, name):
    text = text.replace("{id}", name)
    text = re.sub(r"\{len:([^{}]*)\}", lambda found: str(len(plain(found[1]))), text)
    return re.sub(r"\{(.)\*(\d+)\}", lambda found: found[1] * int(found[2]), text)


def entries(corpus):
    """Name, expectation and lines of each."""
    found = []
    for line in pathlib.Path(__file__).with_name(corpus).read_text("utf-8").split("\n"):
        if head := re.match(r"\[(.+)\] ((?:refused|partial|one|two|whole|broken).*)\Z", line):
            found.append((head[1], head[2], []))
        elif line and not line.startswith("#"):
            found[-1][2].append(line)
    return found


def http1_bytes(lines):
    out = b""
    for line in lines:
        if line == "~":
            out += b"\r\n"
        elif re.search(r"(?<!\\)(\\\\)*\\\Z", line):
            out += plain(line[:-1])
        else:
            out += plain(line) + b"\r\n"
    return out
