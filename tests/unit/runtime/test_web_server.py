"""Web server: sockets, guards, and a graceful stop on SIGTERM."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap

import httpx
import pytest

from project.errors import InputError
from project.runtime.web_server import HostGuard, TokenGuard, bind, url_of

SERVER = """
import asyncio
import signal
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from project.runtime.web_server import bind, serve_app, url_of

async def answer(request):
    print("asked", flush=True)
    await asyncio.sleep(1)
    return PlainTextResponse("done")

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as `run_command` does
listener = bind("127.0.0.1", 0)
print(url_of(listener), flush=True)
app = Starlette(routes=[Route("/", answer)])
serve_app(app, listener, key="serve", on_stop=lambda: print("stopped", flush=True))
"""


async def _hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _get(app, path="/", **options):
    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.get(path, **options)

    return asyncio.run(ask())


def test_port_in_use_is_one_line():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InputError, match=rf"^port={port}: cannot listen on 127.0.0.1 \(address already in use\)"
        ):
            bind("127.0.0.1", port)


def test_address_of_another_machine_is_one_line():
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_url_of_ipv6():
    with bind("::1", 0) as listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"])
def test_loopback_server_answers_this_machine(name):
    assert _get(HostGuard(_hello, "127.0.0.1"), headers={"host": name}).text == "hello"


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_loopback_server_refuses_other_names(name):
    assert _get(HostGuard(_hello, "127.0.0.1"), headers={"host": name}).status_code == 421


def test_public_server_answers_every_name():
    assert _get(HostGuard(_hello, "0.0.0.0"), headers={"host": "box.example"}).text == "hello"  # noqa: S104


def test_token():
    app = TokenGuard(_hello, "s3cret")
    assert _get(app).status_code == 401
    assert "token is needed" in _get(app).json()["detail"]
    assert _get(app, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert _get(app, headers={"authorization": "bearer s3cret"}).text == "hello"
    answer = _get(app, "/?token=s3cret")
    assert answer.text == "hello"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert _get(app, headers={"cookie": answer.headers["set-cookie"].partition(";")[0]}).text == "hello"


@pytest.mark.slow
def test_sigterm_finishes_requests():
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            url = server.stdout.readline().strip()
            with httpx.stream("GET", url, timeout=20) as answer:
                assert server.stdout.readline() == "asked\n"
                server.send_signal(signal.SIGTERM)
                assert answer.read() == b"done"
            assert server.wait(20) == 0
            assert server.stdout.readline() == "stopped\n"
        finally:
            server.kill()


@pytest.mark.slow
def test_server_outlives_clients_that_left_before_it_started():
    program = SERVER.replace("app = Starlette", "import sys; sys.stdin.readline()\napp = Starlette")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        try:
            url = server.stdout.readline().strip()
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
                    client.sendall(b"GET /missing HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.stdin.write("go\n")
            server.stdin.flush()
            assert httpx.get(url, timeout=20).text == "done"
        finally:
            server.kill()


@pytest.mark.slow
def test_silent_connections_are_closed():
    program = SERVER.replace('key="serve"', 'key="serve", http=header_timeout_protocol(0.5)').replace(
        "import bind,", "import bind, header_timeout_protocol,"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            url = server.stdout.readline().strip()
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
                client.settimeout(20)
                client.sendall(b"GET / HTTP/1.1\r\n")  # the headers never end
                assert client.recv(1) == b""
            assert httpx.get(url, timeout=20).text == "done"  # takes longer than the limit of silence
        finally:
            server.kill()
