"""Web server of the commands that show a page or answer requests; by default it answers only this machine.

uvicorn serves a Starlette or FastAPI application. This module adds what every such command needs: one line
for a port in use, a token, and a guard against pages of other sites that call this server.
"""

import secrets
import signal
import socket
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from project.errors import InputError
from project.runtime.extras import import_extra

EXTRA = "serve"
"""Extra of this project that installs the web server."""
LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535
COOKIE = "project_token"


def bind(host: str, port: int, key: str = "port") -> socket.socket:
    """Return a listening socket.

    Args:
        host: address or name; `127.0.0.1` answers only this machine.
        port: port number; 0 lets the system choose a free one.
        key: name of the port's key, for the message.

    Raises:
        InputError: the port is in use, or the address does not belong to this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0].lower()
        raise InputError(
            f"{key}={port}: cannot listen on {host} ({reason}); choose another port (0: any free), or host="
        ) from error


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_app(
    app: Any,
    listener: socket.socket,
    *,
    key: str,
    token: str | None = None,
    shutdown_s: float = 30,
    on_stop: Callable[[], None] | None = None,
    http: type | str = "auto",
) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that are being answered.

    Args:
        app: ASGI application.
        listener: socket of `bind`.
        key: command or key that needs the server, for the message of a missing extra.
        token: secret that every request must carry [none]; see `TokenGuard`.
        shutdown_s: longest wait for unfinished requests [s].
        on_stop: called when a signal has stopped the server.
        http: class of uvicorn's connections, such as that of `header_timeout_protocol`.

    Raises:
        InputError: uvicorn is not installed.
    """
    uvicorn = import_extra("uvicorn", key, EXTRA)
    guarded = HostGuard(TokenGuard(app, token) if token else app, listener.getsockname()[0])
    config = uvicorn.Config(
        guarded,
        log_level="warning",
        access_log=False,
        lifespan="on",
        http=http,
        timeout_graceful_shutdown=shutdown_s,
        server_header=False,
    )
    signals = (signal.SIGTERM, signal.SIGINT)
    # uvicorn repeats a signal after its graceful stop, which would otherwise end the process
    handlers = [signal.signal(number, lambda *_: None) for number in signals]
    if hasattr(signal, "SIGPIPE"):  # commands end at a closed pipe; a server outlives clients that leave
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
        if on_stop is not None:
            on_stop()


def header_timeout_protocol(timeout_s: float) -> type:
    """Return a class of connections that are closed if no request begins within a time.

    uvicorn waits for the headers of a first request without limit, so that silent clients could use up all
    connections. Tested with uvicorn 0.54.

    Args:
        timeout_s: longest time from one request to the next [s].
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class HeaderTimeoutProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(timeout_s, self.close_if_silent, None)

        def close_if_silent(self, earlier: Any) -> None:
            """Close the connection if it is idle since the request `earlier` was answered."""
            if self.transport.is_closing():
                return
            if self.cycle is earlier and (earlier is None or earlier.response_complete):
                self.transport.close()
            else:
                self.loop.call_later(timeout_s, self.close_if_silent, self.cycle)

    return HeaderTimeoutProtocol


class HostGuard:
    """Refuses requests to a loopback server under a name that is not this machine's.

    The name of another site can point to 127.0.0.1 (DNS rebinding); its pages could then read the
    answers. A server on other addresses accepts every name.

    Args:
        app: ASGI application.
        host: address that the server listens on.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = {"localhost", LOOPBACK, "[::1]"} if host in (LOOPBACK, "::1") else None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, or refuse it with status 421."""
        if self.names is not None and scope["type"] in ("http", "websocket"):
            name = _header(scope, b"host")
            name = name if name.endswith("]") else name.rpartition(":")[0] or name
            if name.lower() not in self.names:
                await _refuse(scope, send, 421, "this server answers localhost only")
                return
        await self.app(scope, receive, send)


class TokenGuard:
    """Refuses requests without the token, with status 401.

    The token is accepted as `Authorization: Bearer TOKEN`, as `?token=TOKEN` and as the cookie that a first
    request with `?token=` receives, so that a page can load its own files.

    Args:
        app: ASGI application.
        token: the secret.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request that carries the token."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        query = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        scheme, _, bearer = _header(scope, b"authorization").partition(" ")
        cookies = SimpleCookie(_header(scope, b"cookie"))
        cookie = cookies[COOKIE].value if COOKIE in cookies else ""
        given = [query, bearer if scheme.lower() == "bearer" else "", cookie]
        if not any(secrets.compare_digest(text.encode(), self.token.encode()) for text in given):
            await _refuse(scope, send, 401, "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN")
            return

        async def send_with_cookie(message: dict[str, Any]) -> None:
            if query and message["type"] == "http.response.start":
                value = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] = [*message.get("headers", []), (b"set-cookie", value.encode())]
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def _header(scope: dict[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def _refuse(scope: dict[str, Any], send: Any, status: int, reason: str) -> None:
    """Answer with a status and a JSON object like FastAPI's own errors."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = f'{{"detail":"{reason}"}}'.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
