"""Options of launchers and sweepers, checked against the annotations of their constructors."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from omegaconf import OmegaConf

from project.errors import InputError
from project.runtime.bounds import Spec, find_problem, parse

TOP_KEYS = ("seeds", "folds")
"""Options that users set at the top of the configuration."""

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def checked_options(parent: str) -> Callable[[Constructor], Constructor]:
    """Return a decorator that makes a constructor refuse values outside its annotations.

    A whole number in the place of a text becomes a text: names of accounts and studies may be digits.

    Args:
        parent: key of the options in the configuration, such as `hydra.launcher`.
    """

    def decorate(constructor: Constructor) -> Constructor:
        @wraps(constructor)
        def checked(self: object, **options: Any) -> None:
            options = {
                name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
                for name, value in options.items()
            }
            for name, spec in _read_specs(constructor).items():
                value = options.get(name)
                if name not in options or not (problem := find_problem(spec, value)):
                    continue
                if type(value) is int and not find_problem(spec, str(value)):
                    options[name] = str(value)
                    continue
                key = name if name in TOP_KEYS else f"{parent}.{name}"
                raise InputError(f"{key}={value}: {problem}")
            constructor(self, **options)

        return checked  # type: ignore[return-value]

    return decorate


def _read_specs(constructor: Callable[..., None]) -> dict[str, Spec]:
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body
    assert isinstance(function, ast.FunctionDef)
    return {argument.arg: parse(argument.annotation, lambda _: None) for argument in function.args.args}
