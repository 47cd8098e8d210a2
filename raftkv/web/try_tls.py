"""Tries a certificate and its key: ``python -m raftkv.web.try_tls CERTIFICATE KEY``.

OpenSSL takes keys and files that the HTTP server's own TLS (rustls) does not, and the server ends
its process about them. So it is tried in a process of its own, with one handshake; what is wrong
is on standard error.
"""

import asyncio
import os
import socket
import ssl
import sys
from typing import Any, cast

import uvloop

from raftkv.rpc.web_config import WebConfig
from raftkv.web.worker import HttpServer

_HANDSHAKE_S = 10.0


async def _no_app(*_: Any) -> None:
    """Nobody sends a request."""


async def _try(certificate: str, key: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)  # noqa: FBT003 -- the standard library's own order
    config = WebConfig(node_name="", tls_cert=certificate, tls_key=key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # ours, whoever signed it
    server = HttpServer(_no_app, config, listener)
    serving = asyncio.ensure_future(cast("Any", server).serve())
    host, port = listener.getsockname()
    connecting = asyncio.ensure_future(asyncio.open_connection(host, port, ssl=context))
    async with asyncio.timeout(_HANDSHAKE_S):
        await asyncio.wait({serving, connecting}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    if connecting.done():
        connecting.result()


if __name__ == "__main__":
    uvloop.run(_try(*sys.argv[1:]))
    os._exit(0)  # the server's threads go on
