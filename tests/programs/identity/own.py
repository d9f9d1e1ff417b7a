"""TLS as a sidecar speaks it, with an identity that was taken from a sidecar's state directory."""

import base64
import json
import ssl
import tempfile


def tls(identity, protocol):
    """A client's context with the certificate and key of `identity.json`, offering one ALPN name."""
    with open(identity) as file:
        saved = json.load(file)

    def pem(kind, der):
        text = base64.encodebytes(base64.b64decode(der)).decode()
        return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n"

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write("".join(pem("CERTIFICATE", der) for der in saved["chain"]))
        file.write(pem("PRIVATE KEY", saved["key"]))
        file.flush()
        context.load_cert_chain(file.name)
    context.set_alpn_protocols([protocol])
    return context
