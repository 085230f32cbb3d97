"""Runs the page's web server until it is interrupted."""

import importlib.util
import ipaddress
import secrets
import socket
from collections.abc import Callable

from chan.retrieval.search import IndexSearch
from data_tools.errors import InputError, one_line

MAX_CONNECTIONS = 256
MAX_HEADERS = 16 << 10  # bytes


def serve(searched: IndexSearch, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve the page of an index; it ends when the process is interrupted.

    Args:
        searched: the index.
        host: where to listen; any address but one of the loopback interface asks for a token.
        port: 0 takes a free one.
        announce: is told the page's address, with the token if there is one.

    Raises:
        InputError: the extra `serve` is not installed, or the address cannot be listened on.
    """
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        raise InputError("the page needs the extra serve; fix: pip install starlette uvicorn")
    import uvicorn

    from chan.retrieval.server.app import make_app

    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    listening = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    config = uvicorn.Config(
        make_app(searched, token),
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_graceful_shutdown=3,
    )
    announce(address if token is None else f"{address}?token={token}")
    uvicorn.Server(config).run([listening])


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot be listened on: {one_line(error)}; fix: give --port") from None
    return listening
