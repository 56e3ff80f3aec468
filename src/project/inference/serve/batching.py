"""Dynamic batching: requests that arrive together share a forward pass."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch
from torch import Tensor

from project.inference.serve.models import ServedModel

RATE_WEIGHT = 0.2
"""Weight of the newest batch in the average throughput."""
MAX_RETRY_S = 60


class QueueFullError(Exception):
    """Refusal of a request because too many images wait.

    Args:
        retry_s: estimated time until there is room [s].
    """

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_s} s")
        self.retry_s = retry_s


class _Group:
    """Images of a request, which are answered by one model in one turn."""

    def __init__(self, model: ServedModel, images: Tensor) -> None:
        self.model = model
        self.images = images  # N, C, H, W
        self.result: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()


class Batcher:
    """Queue of images in front of a network.

    A request reserves its places before its images are decoded. A batch waits for more images only while
    reserved ones are being decoded, so that a single client is answered without delay.

    Args:
        max_batch: images in a forward pass.
        max_wait_s: longest wait for more images [s].
        max_queue: images with a place.
        on_batch: called with the number of images and the time [s] of each batch.
    """

    def __init__(
        self,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        on_batch: Callable[[int, float], object] = lambda *_: None,
    ) -> None:
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.max_queue = max_queue
        self.on_batch = on_batch
        self.num_reserved = 0
        self._images_per_s = 0.0
        self._groups: deque[_Group] = deque()
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")

    def reserve(self, count: int) -> None:
        """Reserve places for images; `release` returns them.

        Raises:
            QueueFullError: there are not enough places.
        """
        if self.num_reserved + count > self.max_queue:
            seconds = self.num_reserved / self._images_per_s if self._images_per_s else 1.0
            raise QueueFullError(min(max(math.ceil(seconds), 1), MAX_RETRY_S))
        self.num_reserved += count

    def release(self, count: int) -> None:
        """Return places, after an answer or an error."""
        self.num_reserved -= count
        self._changed.set()

    async def predict(self, model: ServedModel, images: Tensor) -> Tensor:
        """Return the class probabilities (N, K) of images (N, C, H, W) uint8 with reserved places."""
        group = _Group(model, images)
        self._groups.append(group)
        self._changed.set()
        return await group.result

    async def run(self) -> None:
        """Answer groups until canceled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._groups:
                    self._changed.clear()
                    await self._changed.wait()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.max_wait_s):
                        await self._more_images()
                if not (batch := self._next_batch()):
                    continue
                start = time.perf_counter()
                results = await loop.run_in_executor(self._thread, _compute, batch, self.max_batch)
                self._measure(sum(len(group.images) for group in batch), time.perf_counter() - start)
                for group, result in zip(batch, results, strict=True):
                    if group.result.done():  # its request ran out of time meanwhile
                        continue
                    if isinstance(result, Exception):
                        group.result.set_exception(result)
                    else:
                        group.result.set_result(result)
        finally:
            self._thread.shutdown(wait=False)

    async def _more_images(self) -> None:
        """Return when a batch is full, or when all reserved images have arrived."""
        while (count := self._num_waiting()) < self.max_batch and count < self.num_reserved:
            self._changed.clear()
            await self._changed.wait()

    def _num_waiting(self) -> int:
        return sum(len(group.images) for group in self._groups)

    def _next_batch(self) -> list[_Group]:
        """Take the next groups of one model: as many as fit a batch, at least one."""
        batch: list[_Group] = []
        size = 0
        while self._groups:
            group = self._groups[0]
            if group.result.done():
                self._groups.popleft()
                continue
            if batch and (group.model is not batch[0].model or size + len(group.images) > self.max_batch):
                break
            size += len(group.images)
            batch.append(self._groups.popleft())
        return batch

    def _measure(self, count: int, seconds: float) -> None:
        rate = count / max(seconds, 1e-6)
        before = self._images_per_s or rate
        self._images_per_s = (1 - RATE_WEIGHT) * before + RATE_WEIGHT * rate
        self.on_batch(count, seconds)


def _compute(groups: list[_Group], max_batch: int) -> list[Tensor | Exception]:
    """Return the probabilities of each group; an error of one group does not affect the others."""
    try:
        images = torch.cat([group.images for group in groups])
        outputs = torch.cat([groups[0].model.probabilities(part) for part in images.split(max_batch)])
        return list(outputs.split([len(group.images) for group in groups]))
    except Exception as error:  # out of memory, NaN
        if len(groups) == 1:
            return [error]
        return [result for group in groups for result in _compute([group], max_batch)]
