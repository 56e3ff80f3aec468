"""Modules that run when something is asked of them, not when they are imported.

`importlib.util.LazyLoader` of the standard library does this for `import module`. Here some names can be
answered beforehand too, so that `from module import name` need not run the module either, and submodules
that need nothing of their package can be imported without running it.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType, new_class
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Importing it takes longer than all of this; Python asks loaders and finders for their methods only.
    from importlib.abc import Loader, MetaPathFinder
else:
    Loader = MetaPathFinder = object

PROBED = frozenset({"__path__", "__warningregistry__", "__wrapped__"})
"""What Python and tools look for in any module; one that has not run lacks what it was not born with."""


@dataclass(frozen=True)
class Deferral:
    """How one module waits.

    Args:
        answers: yields names that are known before the module runs, each with its value. It may import
            `submodules` on the way, which find in the module what was yielded before.
        submodules: those that can be imported before the module runs.
        after: called when the module has run.
    """

    answers: Callable[[], Iterable[tuple[str, Any]]] = tuple
    submodules: frozenset[str] = frozenset()
    after: Callable[[], object] = lambda: None


class Waiting(ModuleType):
    """A module that has been imported and has not run: whatever it does not know makes it run.

    What is assigned to it, such as an option, is assigned again when it has run.
    """

    def __getattr__(self, name: str) -> Any:
        if name in PROBED and waits(self):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        run(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        loader = _later(self)
        if loader is not None and not isinstance(value, ModuleType):  # those are its submodules
            loader.assigned[name] = value
        ModuleType.__setattr__(self, name, value)


class StandIn(type):
    """Stands for a class of a waiting module, made by `stand_in`; has the module run when it is used.

    Nothing is an instance of it before: what could have made one would have had the module run.
    """

    __module__: str
    __qualname__: str

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> "StandIn | type":
        """Make one, or a subclass of what it stands for."""
        if not bases:
            return super().__new__(mcs, name, bases, namespace)
        meant = tuple(_meant(base) if isinstance(base, StandIn) else base for base in bases)
        return new_class(name, meant, options, lambda body: body.update(namespace))

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        """Make an instance of what is meant."""
        return _meant(cls)(*arguments, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether something is an instance of what is meant."""
        return not waits(sys.modules.get(cls.__module__)) and isinstance(instance, _meant(cls))

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Whether something is a subclass of what is meant."""
        return subclass is cls or (
            not waits(sys.modules.get(cls.__module__)) and issubclass(subclass, _meant(cls))
        )

    def __getattr__(cls, name: str) -> Any:
        return getattr(_meant(cls), name)


def stand_in(module: str, name: str) -> StandIn:
    """A class to import before its module runs.

    Args:
        module: the one that waits.
        name: of the class in it.
    """
    made = StandIn(name, (), {"__module__": module})
    assert isinstance(made, StandIn)
    return made


def _meant(cls: StandIn) -> Any:
    module = import_module(cls.__module__)
    run(module)
    return getattr(module, cls.__name__)


class LaterLoader(Loader):
    """Makes a module that waits; keeps the loader that runs it.

    Args:
        real: the loader that Python has found.
        deferral: how the module waits.
    """

    def __init__(self, real: Loader, deferral: Deferral) -> None:
        self.real = real
        self.deferral = deferral
        self.lock = RLock()
        self.answers: dict[str, Any] = {}
        self.assigned: dict[str, Any] = {}

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`: do no more than answering what is known."""
        for name, value in self.deferral.answers():
            vars(module)[name] = self.answers[name] = value
        module.__class__ = Waiting


class PresentLoader(Loader):
    """Gives Python a module that was imported while it was being looked for.

    Args:
        module: that one.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See `importlib.abc.Loader`."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`: the module has run."""
        module.__spec__ = self.spec


class Finder(MetaPathFinder):
    """Finds the modules that shall wait, first of all finders.

    Args:
        deferrals: by full module name.
    """

    def __init__(self, deferrals: Mapping[str, Deferral]) -> None:
        self.deferrals = deferrals

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname in self.deferrals:
            return self._deferred(fullname, path)
        parent, _, name = fullname.rpartition(".")
        package = sys.modules.get(parent)
        if package is None or (loader := _later(package)) is None or name in loader.deferral.submodules:
            return None
        run(package)
        present = sys.modules.get(fullname)
        return ModuleSpec(fullname, PresentLoader(present)) if present is not None else None

    def _deferred(self, name: str, path: Iterable[str] | None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, None if path is None else list(path))
        if spec is not None and spec.loader is not None:
            spec.loader = LaterLoader(spec.loader, self.deferrals[name])
        return spec


def waits(module: ModuleType | None) -> bool:
    """Whether a module has been imported and has not run."""
    return module is not None and _later(module) is not None


def run(module: ModuleType) -> None:
    """Run a module that waits, once, and its package before; leave any other as it is."""
    package = sys.modules.get(module.__name__.rpartition(".")[0])
    if waits(module) and package is not None:
        run(package)
    if (loader := _later(module)) is None:
        return
    spec = module.__spec__
    assert spec is not None
    with loader.lock:
        if spec.loader is not loader:  # another thread has run it in the meantime
            return
        for name in loader.answers:
            vars(module).pop(name, None)
        spec.loader = module.__loader__ = loader.real
        try:
            loader.real.exec_module(module)
        except BaseException:
            spec.loader = module.__loader__ = loader
            vars(module).update(loader.answers)
            raise
        if module.__class__ is Waiting:  # it may have chosen another itself
            module.__class__ = ModuleType  # type: ignore[assignment]
        for name, value in loader.assigned.items():
            setattr(module, name, value)
        loader.deferral.after()


def _later(module: ModuleType) -> LaterLoader | None:
    """The loader of a module that waits, None for any other module."""
    loader = getattr(vars(module).get("__spec__"), "loader", None)
    return loader if isinstance(loader, LaterLoader) else None
