"""Doing the next pieces of work in the background."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ahead(work: Callable[[In], Out], pieces: Iterable[In], depth: int = 2, threads: int = 1) -> Iterator[Out]:
    """Yield `work(piece)` for each piece, in order; threads do up to `depth` of them beforehand.

    An exception of `work` is raised where its result would have come. The threads end with the iterator.
    """
    waiting = iter(pieces)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        coming: deque[Future[Out]] = deque(pool.submit(work, piece) for piece in islice(waiting, depth))
        try:
            while coming:
                done = coming.popleft().result()
                coming.extend(pool.submit(work, piece) for piece in islice(waiting, 1))
                yield done
        finally:
            for future in coming:
                future.cancel()
