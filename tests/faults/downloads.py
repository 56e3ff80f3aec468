"""Four processes download a data set from a local server into one folder at once, and some are killed.

The others must have the complete data set, and no temporary files may remain.
"""

import gzip
import hashlib
import io
import os
import random
import shutil
import signal
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from exit_kinds import wait_for_end

from project.datamodules import downloads
from project.datamodules.downloads import Archive, download_archives

PROCESSES = 4
SET = Path("set/raw")
BLOCK = 4096
LIMIT_S = 120


@dataclass
class Served:
    """A data set on a slow server.

    Args:
        address: URL of the server.
        archives: files on the server.
        checksums: MD5 of the files in the archives, by name.
    """

    address: str
    archives: list[Archive]
    checksums: dict[str, str]

    def download(self, folder: Path) -> None:
        download_archives(self.archives, folder)

    def fetch(self, root: Path) -> None:
        downloads.ensure_downloaded("toy", root, SET, self.checksums, self.download, root / "verified.json")


@contextmanager
def serving(seconds: float, *, cut: bool = False) -> Iterator[Served]:
    """Serve a data set of two gzip files and a tar archive.

    Args:
        seconds: approximate duration of a download [s].
        cut: stop every second response halfway.
    """
    draws = random.Random(0)
    contents = {name: draws.randbytes(60_000) for name in ("one", "two", "three", "four")}
    packed = {f"{name}.gz": gzip.compress(contents[name]) for name in ("one", "two")}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in ("three", "four"):
            entry = tarfile.TarInfo(f"raw/{name}")
            entry.size = len(contents[name])
            tar.addfile(entry, io.BytesIO(contents[name]))
    packed["rest.tar.gz"] = stream.getvalue()
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += 1
            body = packed.get(self.path.strip("/"))
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if cut and asked % 2:
                body = body[: len(body) // 2]
            pause = seconds * BLOCK / len(body)
            with suppress(OSError):  # the client was killed
                for start in range(0, len(body), BLOCK):
                    self.wfile.write(body[start : start + BLOCK])
                    time.sleep(pause)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    made = [
        Archive(name, [f"{address}/missing", address], _md5(body), len(body), members, 100_000)
        for (name, body), members in zip(
            packed.items(), (["one"], ["two"], ["raw/three", "raw/four"]), strict=True
        )
    ]
    try:
        yield Served(address, made, {name: _md5(content) for name, content in contents.items()})
    finally:
        server.shutdown()
        server.server_close()


def one_round(served: Served, draws: random.Random, seconds: float) -> dict[str, int]:
    """Download in several processes into a new folder, kill some, and check the result.

    Args:
        served: the data set.
        draws: random choice of the killed processes and times.
        seconds: period of the kills [s].

    Returns:
        Numbers of processes killed, survived and failed, of damaged files, of remaining staging folders, and
        of downloads interrupted by a kill.
    """
    root = Path(tempfile.mkdtemp(prefix="downloads-"))
    try:
        running = {_fork(served, root, number): number for number in range(PROCESSES)}
        doomed = draws.sample(sorted(running), draws.randint(1, PROCESSES - 1))
        moments = sorted((draws.uniform(0, seconds), pid) for pid in doomed)
        began, killed, interrupted = time.monotonic(), 0, 0
        for moment, pid in moments:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            before = _staging(root)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
            interrupted += bool(before)
        codes = {pid: _end_of(pid) for pid in running}
        failed = sum(code not in (0, -signal.SIGKILL) for code in codes.values())
        lived = sum(code != -signal.SIGKILL for code in codes.values())
        served.fetch(root)  # as a later run does
        damaged = sum(_md5((root / SET / name).read_bytes()) != md5 for name, md5 in served.checksums.items())
        left = len(_staging(root))
        strangers = {file.name for file in (root / SET).iterdir()} ^ set(served.checksums)
        return {
            "killed": killed,
            "lived": lived,
            "failed": failed,
            "damaged": damaged + len(strangers),
            "left": left,
            "in a download": interrupted,
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def trial(rounds: int, seconds: float, seed: int = 0) -> dict[str, int]:
    """Run several rounds, and return the sums of their results.

    Raises:
        AssertionError: a surviving process failed, a file is damaged, or a staging folder remains.
    """
    draws = random.Random(seed)
    total: dict[str, int] = {}
    with serving(seconds) as served:
        for number in range(rounds):
            seen = one_round(served, draws, 4 * seconds)
            assert not seen["failed"], f"round {number}: {seen}"
            assert not seen["damaged"], f"round {number}: {seen}"
            assert not seen["left"], f"round {number}: {seen}"
            total = {name: total.get(name, 0) + count for name, count in seen.items()}
    return total


def full() -> str:
    """Run 50 rounds, and return the results."""
    total = trial(50, seconds=0.3)
    assert total["in a download"] >= 25, total
    shown = ", ".join(f"{count} {name}" for name, count in total.items())
    return f"50 rounds of {PROCESSES} processes: {shown}"


def _fork(served: Served, root: Path, number: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        downloads.RETRY_PAUSE_S = 0.01
        served.fetch(root)
        bad = [
            name for name, md5 in served.checksums.items() if _md5((root / SET / name).read_bytes()) != md5
        ]
        code = 3 if bad else 0
    except BaseException as error:
        print(f"process {number}: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def _end_of(pid: int) -> int:
    code = wait_for_end(pid, LIMIT_S)
    return 1 if code is None else code  # the process hung


def _staging(root: Path) -> list[Path]:
    return list(root.glob(".download-*"))


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    print(full())
