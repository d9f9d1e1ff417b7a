"""One request to a service of the mesh, as several programs make it."""

import http.client

WEB = "web.shop.mesh"


def ask(path, method="GET", headers={}, host=WEB):
    """Asks on a connection of its own: the status, and the reason where the mesh answered."""
    connection = http.client.HTTPConnection(host, 8080, timeout=20)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.getheader("weft-reason")
