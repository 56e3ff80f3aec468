"""Names of torchvision's classification models and weights, read from its source, not imported."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

BUILDER = re.compile(
    r'^@register_model\((?:name="(?P<given>\w+)")?\)\n'
    r"(?:@handle_legacy_interface\((?P<legacy>.*)\)\n)?"
    r"def (?P<name>\w+)\((?P<parameters>[^)]*)\)",
    re.MULTILINE,
)
WEIGHTS = re.compile(r"\b(\w+_Weights)\b")


def names() -> tuple[str, ...]:
    """All of them; none where the source does not say it in the plain way."""
    return tuple(sorted(_weights_by_model()))


def weights_of(name: str) -> tuple[str, ...]:
    """Names of a model's pretrained weights, without DEFAULT; none where the source does not say them."""
    enumeration = _weights_by_model().get(name, "")
    for text in _sources():
        if found := re.search(rf"^class {enumeration}\(.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
            body = found[0].partition("\n")[2]
            members = re.findall(r"^    (\w+) = ", body, re.MULTILINE)
            return tuple(member for member in members if member != "DEFAULT")
    return ()


@cache
def _weights_by_model() -> Mapping[str, str]:
    found = {}
    for text in _sources():
        for builder in BUILDER.finditer(text):
            weights = WEIGHTS.search(builder["parameters"])
            found[builder["given"] or builder["name"]] = weights[1] if weights else ""
    return found


@cache
def _sources() -> tuple[str, ...]:
    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    try:
        return tuple(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py")))
    except (OSError, UnicodeDecodeError):
        return ()
