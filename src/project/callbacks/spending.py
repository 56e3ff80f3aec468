"""How much of a run's time goes into what it could do without."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

IMPORT_S = 0.1
"""Of Pillow, for the first picture."""


class Spending:
    """An account in seconds, to which a share of the run's time is added as it goes on.

    Args:
        budget: that share; 1 allows everything, 0 nothing.
        least_s: seconds that it holds from the start.
        costs: expected seconds of each thing, in the order of importance.
    """

    def __init__(self, budget: float, least_s: float, costs: Mapping[str, float]) -> None:
        self.budget = budget
        self.least_s = least_s
        self.costs = costs
        self.spent_s = 0.0
        self.left_out: list[str] = []
        self._done: set[str] = set()
        self._expected_s = 0.0  # of what was done
        self._began = time.perf_counter()

    def allows(self, name: str, more_s: float = 0.0, *, and_all: bool = False) -> bool:
        """Whether there is time for something; if not, that is remembered.

        Args:
            name: of the thing.
            more_s: seconds that it takes beside what is expected.
            and_all: ask for the time of everything that is not done, and remember nothing: for what comes
                before more important things.
        """
        wanted = [other for other in self.costs if other not in self._done] if and_all else [name]
        expected = sum(self.costs[each] for each in wanted)
        if "PIL.Image" not in sys.modules:
            expected += IMPORT_S
        pace = max(1.0, self.spent_s / self._expected_s) if self._expected_s else 1.0
        enough = self.spent_s + expected * pace + more_s <= self._allowed_s() or self.budget >= 1
        if not enough and not and_all and name not in self.left_out:
            self.left_out.append(name)
        return enough and self.budget > 0

    @contextmanager
    def on(self, name: str, more_s: float = 0.0) -> Iterator[None]:
        """Do something, and note the time that it takes."""
        imports = 0.0 if "PIL.Image" in sys.modules else IMPORT_S
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent_s += time.perf_counter() - began
            self._expected_s += self.costs[name] + more_s + imports
            self._done.add(name)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do what serves to know costs: it counts as spent, and says nothing of the machine's pace."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.spent_s += took
            self._expected_s += took

    def tell(self) -> Iterator[str]:
        """Yield lines for the log if something was left out."""
        if self.left_out and self.budget > 0:
            yield f"left out to save time: {', '.join(self.left_out)}"
            yield "with callbacks.story.budget=1 TensorBoard shows all of it"

    def _allowed_s(self) -> float:
        return max(self.least_s, self.budget * (time.perf_counter() - self._began))
