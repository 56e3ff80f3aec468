"""Load of the server: throughput with and without batching, and requests across a restart.

Starts `scripts/serve.py` on a free port of this machine, and sends one image a request over kept connections.
The CPU time of a request is that of the server: it counts where other programs slow the machine down. The
restart test sends requests while the server gets SIGTERM and starts again on the same port; the client
repeats only requests that got no answer, and checks every answer.

    python benchmarks/serve_load.py --run outputs/cnn_digits_adam/2026-01-31_09-30-00
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 180.0
TIMEOUT_S = 60.0
PATH = "/predict?top_k=1000"


class Connection:
    """Kept connection to the server, with little cost of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Return status and body of an answer; raises OSError or EOFError if the connection closes before."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self.streams is None:
                    self.streams = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = self.streams
                head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines[1:] if line)
                content = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), content

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


def get(url: str) -> str:
    """Return the text of a page; raises OSError if the server does not answer."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310
        return str(answer.read().decode())


def metric(url: str, name: str) -> float:
    """Return a metric of the server, summed over its labels."""
    lines = [
        line for line in get(f"{url}/metrics").splitlines() if line.startswith((f"{name} ", f"{name}{{"))
    ]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def start(run: str, *words: str, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """Start a server; return its process and URL once it answers."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), f"run={run}", f"port={port}", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while " http://" not in (line := process.stdout.readline()):
        assert line, "the server did not start"
    url = "http://" + line.split(" http://")[1].split("/")[0].strip()
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        try:
            get(f"{url}/health")
            return process, url
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server is not ready")


def stop(process: subprocess.Popen[str]) -> str:
    """Stop a server by SIGTERM; return its last line."""
    process.terminate()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return output.strip().splitlines()[-1]


def bodies(count: int = 16) -> list[bytes]:
    """Return JSON bodies of different images (28, 28)."""
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 28, 28))
    return [json.dumps({"images": image.tolist()}).encode() for image in images]


async def ask(connection: Connection, body: bytes) -> dict[str, float]:
    """Return the probabilities of an image by class; waits while the queue is full."""
    while True:
        status, content = await connection.post(body)
        if status != 429:
            break
        await asyncio.sleep(0.05)
    assert status == 200, content
    return {one["class"]: one["probability"] for one in json.loads(content)["predictions"][0]["top"]}


async def send_for(url: str, clients: int, seconds: float) -> list[float]:
    """Send requests for a time; return the times of the requests [s]."""
    sent = bodies()
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        connection = Connection(int(url.rpartition(":")[2]))
        while (begin := time.perf_counter()) < end:
            await ask(connection, sent[number % len(sent)])
            times.append(time.perf_counter() - begin)
        connection.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return times


def measure(run: str, max_batch: int, clients: int, seconds: float) -> None:
    """Print a row of the table for a server with a batch size."""
    process, url = start(run, f"max_batch={max_batch}")
    try:
        asyncio.run(send_for(url, clients, 1))  # warm
        names = ("process_cpu_seconds_total", "project_batch_images_count", "project_batch_images_sum")
        before = [metric(url, name) for name in names]
        begin = time.perf_counter()
        times = asyncio.run(send_for(url, clients, seconds))
        elapsed = time.perf_counter() - begin
        cpu_s, batches, images = (metric(url, name) - old for name, old in zip(names, before, strict=True))
    finally:
        stop(process)
    middle, late = np.percentile(times, [50, 99]) * 1000
    print(
        f"{max_batch:>9}  {len(times) / elapsed:10.0f}  {middle:7.1f}  {late:7.1f}  {images / batches:9.1f}  "
        f"{1000 * cpu_s / len(times):14.2f}",
        flush=True,
    )


async def across_restart(run: str, requests: int, clients: int) -> None:
    """Send requests, restart the server in between, and check that each is answered once and right."""
    process, url = start(run)
    port = int(url.rpartition(":")[2])
    sent = bodies()
    answers: list[int] = []
    retries = wrong = 0
    lines: list[str] = []
    numbers = iter(range(requests))
    first = Connection(port)
    expected = [await ask(first, body) for body in sent]
    first.close()

    async def one() -> None:
        nonlocal retries, wrong
        connection = Connection(port)
        for number in numbers:
            while True:
                try:
                    got = await ask(connection, sent[number % len(sent)])
                    break
                except (OSError, EOFError):  # refused, or closed before an answer
                    retries += 1
                    await asyncio.sleep(0.1)
            right = expected[number % len(sent)]
            if got.keys() != right.keys() or any(abs(got[name] - right[name]) > 0.01 for name in right):
                wrong += 1
            answers.append(number)
        connection.close()

    async def restart() -> subprocess.Popen[str]:
        while len(answers) < requests / 2:
            await asyncio.sleep(0.01)
        lines.append(await asyncio.to_thread(stop, process))
        return (await asyncio.to_thread(start, run, port=port))[0]

    second, *_ = await asyncio.gather(restart(), *(one() for _ in range(clients)))
    lines.append(stop(second))
    assert sorted(answers) == list(range(requests))
    print(f"restart: {requests:,} requests answered, {wrong} wrong, {retries:,} repeated without an answer")
    for line in lines:
        print(f"  server {line}")
        words = line.split()
        assert words[1] == words[3], "the server lost an accepted request"
    assert not wrong


def main() -> None:
    """Measure, print a table, and test a restart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", required=True, help="folder of a run that takes gray images")
    parser.add_argument("--clients", type=int, default=32, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=8, help="duration of each measurement")
    parser.add_argument("--requests", type=int, default=10_000, help="requests of the restart test")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {arguments.clients} clients on the same machine")
    print("max_batch  requests/s   p50 ms   p99 ms  per batch  CPU ms/request")
    for max_batch in (1, 64, 1, 64):
        measure(arguments.run, max_batch, arguments.clients, arguments.seconds)
    asyncio.run(across_restart(arguments.run, arguments.requests, arguments.clients))


if __name__ == "__main__":
    main()
