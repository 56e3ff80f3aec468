"""Conditions of a sweep: keys that apply only with some options, as `optim.momentum` with `optim=sgd`."""

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from project.errors import InputError
from project.runtime.text import did_you_mean

KEY = "hydra.sweeper.only_if"


class Conditions:
    """Decides which swept keys a point has.

    Args:
        only_if: for a swept key, another key and its values with which it applies: `optim=sgd,muon`.
        given: overrides that all points share.
        swept: swept keys.

    Raises:
        InputError: a condition is not `KEY=VALUE,…`, names a key that the command line does not set, or
            depends on itself.
    """

    def __init__(self, only_if: Mapping[str, str], given: Iterable[str], swept: Iterable[str]) -> None:
        self._given = dict(map(_split, given))
        keys = [key.lstrip("+") for key in swept]
        known = [*keys, *self._given]
        self._by_key: dict[str, tuple[str, list[str]]] = {}
        for key, condition in only_if.items():
            other, equals, values = str(condition).partition("=")
            if not equals or not values:
                raise InputError(
                    f"{KEY}.{key}={condition}: not a condition (expected KEY=VALUE, such as optim=sgd)"
                )
            for name in (key, other):
                if name not in known:
                    raise InputError(
                        f"{KEY}.{key}={condition}: {name} has no values on the command line; "
                        f"{did_you_mean(name, known)}"
                    )
            self._by_key[key] = (other, values.split(","))
        graph = {key: [self._by_key[key][0]] if key in self._by_key else [] for key in known}
        try:
            self.order = [key for key in TopologicalSorter(graph).static_order() if key in keys]
        except CycleError as error:
            raise InputError(
                f"{KEY}: conditions in a circle: {', '.join(error.args[1])}; remove one"
            ) from error

    def holds(self, key: str, values: Mapping[str, str]) -> bool:
        """Return True if a key applies, given the values of a point's other keys that apply."""
        if key not in self._by_key:
            return True
        other, allowed = self._by_key[key]
        return {**self._given, **values}.get(other) in allowed

    def keep(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides of a point whose keys apply, in their order."""
        if not self._by_key:
            return list(overrides)
        named = dict(map(_split, overrides))
        values: dict[str, str] = {}
        for key in self.order:
            if key in named and self.holds(key, values):
                values[key] = named[key]
        unconditional = named.keys() - self._by_key.keys()
        return [text for text in overrides if _split(text)[0] in values.keys() | unconditional]


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+"), value
