"""Asks what a file says, and prints what was answered.

ask.py FILE: the file holds a JSON list of requests {"url", "method", "headers", "body", "times"};
printed is a JSON list of lists of answers {"status", "headers", "body"}, in the same order. The body
is JSON where it can be read as such.
"""

import http.client
import json
import sys
from urllib.parse import urlsplit


def ask(request):
    url = urlsplit(request["url"])
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=20)
    path = url.path or "/"
    if url.query:
        path += "?" + url.query
    answers = []
    for _ in range(request.get("times", 1)):
        connection.request(
            request.get("method", "GET"),
            path,
            body=request.get("body"),
            headers=request.get("headers", {}),
        )
        response = connection.getresponse()
        body = response.read().decode()
        try:
            body = json.loads(body)
        except ValueError:
            pass
        headers = {name.lower(): value for name, value in response.getheaders()}
        answers.append({"status": response.status, "headers": headers, "body": body})
    return answers


with open(sys.argv[1]) as file:
    print(json.dumps([ask(request) for request in json.load(file)]))
