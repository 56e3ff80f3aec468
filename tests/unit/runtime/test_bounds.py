"""Ranges and choices are read from annotations, and values are checked against them."""

import ast

import pytest

from project.runtime.bounds import Range, find_problem, parse

ALIASES = {"Interval": "Literal['epoch', 'step']"}


def _resolve(name: str) -> ast.expr | None:
    return ast.parse(ALIASES[name], mode="eval").body if name in ALIASES else None


@pytest.mark.parametrize(
    ("annotation", "value", "problem"),
    [
        ("Annotated[int, Range(1)]", 1, ""),
        ("Annotated[int, Range(1)]", 0, "must be at least 1"),
        ("Annotated[int, Range(1)]", 1.5, "expected a whole number, got 1.5"),
        ("Annotated[int, Range(1)]", True, "expected a whole number, got true"),
        ("Annotated[float, Range(above=0, high=1000)]", 1, ""),
        ("Annotated[float, Range(above=0, high=1000)]", 0, "must be above 0 and at most 1000"),
        ("Annotated[float, Range(above=0, high=1000)]", "abc", "expected a number, got 'abc'"),
        ("Annotated[float, Range(above=0)]", float("inf"), "expected a finite number, got inf"),
        ("Annotated[float, Range(0, 1)]", float("nan"), "must be at least 0 and at most 1"),
        ("Annotated[int, Range(0, 2**32 - 1)]", 2**32, "must be at least 0 and at most 4294967295"),
        ("Annotated[Sequence[int], Range(1)]", [], ""),
        ("Annotated[Sequence[int], Range(1)]", [3, 0], "must be at least 1"),
        ("Annotated[Sequence[int], Range(1)] | None", None, ""),
        ("Annotated[Sequence[int], Range(1)]", None, "expected a list, got null"),
        ("Annotated[tuple[int, int], Range(1)]", [1], "expected 2 values, got 1"),
        ("tuple[int, ...]", [1, 2, 3], ""),
        (
            "Annotated[Mapping[str, float], Range(above=0, high=1)]",
            {"head": 2},
            "must be above 0 and at most 1",
        ),
        ("Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)]", 5, ""),
        (
            "Annotated[float, Range(0, below=1)] | Annotated[int, Range(0)]",
            1.5,
            "expected a number at least 0 and below 1, or a whole number at least 0, got 1.5",
        ),
        ("Literal['relu', 'gelu']", "relu", ""),
        ("Literal['relu', 'gelu']", "selu", "expected one of relu, gelu, got 'selu'"),
        ("Interval", "year", "expected one of epoch, step, got 'year'"),
        ("Optional[bool]", None, ""),
        ("int | Unknown", "anything", ""),
        ("Unknown", "anything", ""),
    ],
)
def test_a_value_is_compared_with_its_annotation(annotation: str, value: object, problem: str) -> None:
    spec = parse(ast.parse(annotation, mode="eval").body, _resolve)
    assert find_problem(spec, value) == problem


def test_a_range_excludes_infinity_and_nan() -> None:
    assert 1 in Range(0)
    assert float("inf") not in Range(0)
    assert float("nan") not in Range()
    assert 0 not in Range(above=0)
    assert 1 not in Range(below=1)
