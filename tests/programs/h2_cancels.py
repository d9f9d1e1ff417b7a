"""An honest client in HTTP/2: it asks all the time on one connection, and cancels some of its requests.
Usage: h2_cancels.py HOST PORT SECONDS [IDENTITY_JSON|-] [SOURCE_ADDRESS]
Prints one JSON object: requests that were to be answered, those that were, those that it cancelled, and whether the
other side ended the connection."""

import json
import select
import sys
import time

from h2_storm import Connection

HOST, PORT, SECONDS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
IDENTITY = sys.argv[4] if len(sys.argv) > 4 and sys.argv[4] != "-" else None
SOURCE = sys.argv[5] if len(sys.argv) > 5 else None
# 20 cancelled ones in a second.
PAUSE = 0.05
# For the last answers.
PATIENCE = 20


def turn(connection, seconds):
    select.select([connection], [connection] if connection.unsent else [], [], seconds)
    connection.work()


connection = Connection(HOST, PORT, IDENTITY, SOURCE)
asked, cancelled = set(), 0
end = time.monotonic() + SECONDS
while time.monotonic() < end and not connection.ended:
    asked.add(connection.ask())
    connection.reset(connection.ask())
    cancelled += 1
    pause = time.monotonic() + PAUSE
    while (left := pause - time.monotonic()) > 0 and not connection.ended:
        turn(connection, left)
last = time.monotonic() + PATIENCE
while asked - connection.answered and not connection.ended and time.monotonic() < last:
    turn(connection, 0.05)
print(json.dumps(dict(asked=len(asked), answered=len(asked & connection.answered), cancelled=cancelled,
                      ended=connection.ended or connection.goaway is not None)), flush=True)
