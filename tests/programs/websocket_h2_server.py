"""An HTTP/2 application with WebSocket (RFC 8441). Usage: websocket_h2_server.py PORT [unannounced]"""

import sys

from websocket_h2 import serve

serve(int(sys.argv[1]), sys.argv[2:] != ["unannounced"])
