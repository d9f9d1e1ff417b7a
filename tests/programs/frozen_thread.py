"""Stops one thread of a process, as a disk that hangs would: frozen_thread.py PID NAME. The others run on. The
thread goes on when this program ends. Prints `frozen` once it is stopped."""

import ctypes
import os
import signal
import sys

PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
process, name = sys.argv[1:]


def ask(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def called(thread):
    with open(f"/proc/{process}/task/{thread}/comm", encoding="utf-8") as file:
        return file.read().strip()


[thread] = [int(number) for number in os.listdir(f"/proc/{process}/task") if called(number) == name]
ask(PTRACE_SEIZE, thread)
ask(PTRACE_INTERRUPT, thread)
os.waitpid(thread, WALL)
print("frozen", flush=True)
signal.pause()
