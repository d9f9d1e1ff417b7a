#!/usr/bin/env python3
"""What a neighbour's requests take while a sidecar is attacked, beside what they take before and after.

Usage: tests/bench/attacked.py WEFT [--seconds N] [ATTACK...]

WEFT is the binary, built for release; nginx must be installed. An ATTACK is one of
  resets       streams opened and reset at once, by a client outside the mesh
  peer-resets  the same by a workload with its own certificate
  idle         5,000 connections from outside that send nothing
  half-heads   5,000 connections from outside that never end their first line
All of them where none is named. The neighbour asks 50 times a second on a connection of its own, at
the pace of a clock: time that a request waited for its turn counts. Everything listens on loopback."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAMS = pathlib.Path(__file__).resolve().parent.parent / "programs"
ATTACKS = ["resets", "peer-resets", "idle", "half-heads"]
NGINX = """daemon off; worker_processes 1; pid {directory}/nginx.pid;
events {{ worker_connections 10000; }}
http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};
  fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{ listen 127.0.0.1:{app}; keepalive_requests 1000000; location / {{ return 200 "ok"; }} }} }}
"""
RATE = 50
CROWD = 5000


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def wait_for(what, condition, limit=60):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    sys.exit(f"{what}: not within {limit} s")


class Processes:
    """Programs that run until the stack is left, with the environment given."""

    def __init__(self, directory, stack, **environment):
        self.directory, self.stack, self.env = directory, stack, os.environ | environment

    def start(self, name, command):
        log = self.stack.enter_context(open(self.directory / f"{name}.log", "w"))
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=self.env,
                                   start_new_session=True)
        self.stack.callback(end, process)


class Mesh:
    """A control plane, a service `web` that is published, and a workload `neighbour` that asks it."""

    def __init__(self, weft, directory, stack):
        data = directory / "data"
        self.weft, self.processes = weft, Processes(directory, stack, WEFT_CONTROL_PLANE=f"unix:{data}")
        self.published, self.asked = free_port(), free_port()
        app = free_port()
        (directory / "nginx.conf").write_text(NGINX.format(app=app, directory=directory))
        self.processes.start("app", ["nginx", "-c", directory / "nginx.conf", "-e", "stderr"])
        control = free_port()
        self.processes.start("control-plane", [weft, "control-plane", "--listen", f"127.0.0.1:{control}",
                                               "--metrics-listen", "127.0.0.1:0", "--data-dir", data])
        wait_for("the control plane", lambda: connects(control))
        self.run("web", ["--port", f"{app}:http@loopback", "--publish", f"{self.published}:{app}"])
        wait_for("what web publishes", lambda: connects(self.published))
        self.run("neighbour", ["--upstream", f"web=127.0.0.1:{self.asked}"])
        wait_for("an answer", lambda: connects(self.asked) and self.answered())
        self.state = directory / "bad"
        self.run("bad", ["--state-dir", self.state])

    def run(self, name, flags):
        self.processes.start(name, [self.weft, "run", "--capture", "none", "--namespace", "bench",
                                    "--name", name, *flags, "--", "sleep", "infinity"])

    def answered(self):
        with contextlib.suppress(OSError):
            with Neighbour(self.asked) as neighbour:
                return neighbour.ask()
        return False

    def endpoint(self):
        """Where the sidecar of `web` takes mutual TLS."""
        listed = subprocess.run([self.weft, "get", "services", "web", "-n", "bench", "-o", "json"],
                                env=self.processes.env, check=True, capture_output=True, text=True).stdout
        return int(listed.split("127.0.0.1:")[1].split('"')[0].split("/")[0])

    def identity(self):
        file = self.state / "identity.json"
        wait_for("an identity", file.is_file)
        return file


def connects(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


class Neighbour:
    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def ask(self):
        """Whether the answer is 200. The application's answers have a length."""
        self.sock.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.sock.recv(65536) or self.gone()
        head, body = answer.split(b"\r\n\r\n", 1)
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += self.sock.recv(65536) or self.gone()
        return head.startswith(b"HTTP/1.1 200")

    @staticmethod
    def gone():
        raise OSError("closed")


def asked(port, seconds):
    """Milliseconds that requests took, and how many failed."""
    took, failed = [], 0
    neighbour, begin = None, time.monotonic()
    for turn in range(int(seconds * RATE)):
        due = begin + turn / RATE
        time.sleep(max(0, due - time.monotonic()))
        try:
            neighbour = neighbour or Neighbour(port)
            failed += not neighbour.ask()
        except OSError:
            failed, neighbour = failed + 1, None
        took.append((time.monotonic() - due) * 1000)
        if time.monotonic() - begin > seconds * 4:
            break
    took.sort()
    share = lambda part: took[min(len(took) - 1, int(len(took) * part))]
    return dict(requests=len(took), failed=failed, p50_ms=round(share(0.5), 2),
                p99_ms=round(share(0.99), 2), max_ms=round(took[-1], 2))


def crowd(port, sends, stop):
    socks = []
    while len(socks) < CROWD and not stop.is_set():
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            sock.sendall(sends)
            socks.append(sock)
        except OSError:
            stop.wait(0.01)
    stop.wait()
    for sock in socks:
        sock.close()


@contextlib.contextmanager
def attacked(mesh, attack, seconds):
    storm = [sys.executable, PROGRAMS / "h2_storm.py", "127.0.0.1"]
    if attack == "resets":
        process = subprocess.Popen([*storm, str(mesh.published), str(seconds)], stdout=subprocess.DEVNULL)
    elif attack == "peer-resets":
        process = subprocess.Popen([*storm, str(mesh.endpoint()), str(seconds), mesh.identity()],
                                   stdout=subprocess.DEVNULL)
    else:
        sends = {"idle": b"", "half-heads": b"GET /"}[attack]
        stop = threading.Event()
        thread = threading.Thread(target=crowd, args=(mesh.published, sends, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        return
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weft", type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK")
    args = parser.parse_intermixed_args()
    if unknown := set(args.attacks) - set(ATTACKS):
        parser.error(f"{', '.join(unknown)}: allowed: {', '.join(ATTACKS)}")
    for attack in args.attacks or ATTACKS:
        with contextlib.ExitStack() as stack:
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-attacked-")))
            mesh = Mesh(args.weft.resolve(), directory, stack)
            before = asked(mesh.asked, args.seconds)
            with attacked(mesh, attack, args.seconds):
                during = asked(mesh.asked, args.seconds)
            after = asked(mesh.asked, args.seconds)
        print(json.dumps(dict(attack=attack, before=before, during=during, after=after)), flush=True)


if __name__ == "__main__":
    main()
