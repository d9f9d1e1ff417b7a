"""Answers as WSGI applications do: `x-handler: login` where PATH_INFO, with slashes merged (Werkzeug),
resolved, or without parameters (urllib.parse.urlparse), leads to /login. server.py PORT
"""

import posixpath
import re
import sys
from urllib.parse import unquote, urlparse
from wsgiref.simple_server import WSGIRequestHandler, make_server


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def get_environ(self):
        environ = super().get_environ()
        # `path` has lost what http.server changes: slashes at its beginning.
        environ["raw"] = self.requestline.split(" ")[1]
        return environ

    def log_message(self, *_arguments):
        pass


def application(environ, start_response):
    info, raw = environ["PATH_INFO"], environ["raw"]
    merged = re.sub("/+", "/", info)
    ways = {merged, posixpath.normpath(merged), unquote(merged)}
    try:
        ways.add(unquote(urlparse(raw).path))
    except ValueError:
        pass
    login = any(way == "/login" for way in ways)
    headers = [("x-handler", "login" if login else "other"), ("x-raw", raw), ("content-length", "0")]
    start_response("200 OK", headers)
    return []


make_server("", int(sys.argv[1]), application, handler_class=Handler).serve_forever()
