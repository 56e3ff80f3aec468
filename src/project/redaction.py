"""Keeping secrets out of everything that is written: a run's files, a sweep's records, logs, the screen.

A secret is the value of a key that says so (`api_key`, `password`), or that might say so if the value looks
like one (`monitor_key=9f86d081884c7d65`, not `image_key=image`), of an environment variable with a telling
name that the configuration refers to (`${oc.env:WANDB_API_KEY}`), and the password in an address. References
themselves are written as they are: whoever resumes a run or a sweep gets the secret from the environment
again, or must give it again.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

REDACTED = "REDACTED"
"""Written in the place of a secret. A word in the grammars of YAML, of overrides and of addresses."""

ALWAYS = frozenset(
    {
        *("password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets"),
        *("credential", "credentials", "apikey", "accesskey"),
    }
)
"""Words that make a secret of a key wherever they stand in its name."""
AT_THE_END = frozenset({"auth", "pat"})
"""Words that do so as its last one."""
AMBIGUOUS = frozenset({"key", "token"})
"""Words that, as its last one, do so behind one of `OPENING`. Otherwise the value decides: `sort_key`."""
OPENING = frozenset(
    {
        *("api", "access", "secret", "private", "auth", "signing", "encryption", "license", "licence"),
        *("bearer", "refresh", "session", "client", "account", "ssh", "deploy", "master", "login", "bot"),
        *("wandb", "hf", "hub", "face", "github", "gitlab", "neptune", "comet", "mlflow", "clearml"),
        *("kaggle", "openai", "anthropic", "aws", "azure", "gcp", "google", "slack", "telegram"),
    }
)
"""What a key or a token opens, or who gives it out."""

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""Of a name in snake_case, kebab-case or camelCase."""

OPAQUE = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])[^\s/\\.]{16,}")
"""A value that looks like a secret: nobody's word, number, path or name of a class."""

SHORTEST = 8
"""Characters of a value that is looked for within other text; shorter ones are words of any text."""
SHORTEST_PASSWORD = 4
"""The same of a value whose key has a word of `ALWAYS`."""

# Every pattern takes a time that grows as its text does: each begins at a sign that its name cannot hold, and
# what could reach to the text's end from many places has a limit.
END = r"""[\s,;&{}\[\]()'"]"""
VALUE = (
    r"""\$\{[^}]{0,300}\}|'(?:[^'\\]|\\.){0,20000}'|"(?:[^"\\]|\\.){0,20000}"|"""
    rf"""(?:(?!{END}).)+?(?=:?(?:{END}|$))"""
)
ADDRESS = re.compile(r"""(?<=[\w+.-])(://[^\s:/?#@'"]*):(?!\$\{)([^\s/?#'"]+)@""")
GIVEN = re.compile(rf"({VALUE})")
ENTRY = re.compile(rf"(?<=[{{,])(\s*['\"]?\w+['\"]?)(\s*:\s*)({VALUE})")
LONGEST = 200
"""Characters of a value by which is decided whether it looks like a secret."""
IN_NAMES = frozenset("._@/-")
"""Of keys, beside letters and digits."""
TARGET = re.compile(r"""_target_['"]?\s*[:=]\s*['"]?[\w.]*$""")

HOW_AGAIN = "is secret and was not written down; give it again, as in '{key}=${{oc.env:NAME}}'"

_values: dict[str, re.Pattern[str]] = {}
"""Secrets that this process has met, each with what finds it as a word of its own."""


@lru_cache(10_000)
def is_secret(key: str, *, number: bool = False) -> bool:
    """Whether the last part of a dotted key, or the name of a variable, says that its value is secret.

    Args:
        key: its name.
        number: the value is one: then `password` says so, `max_token` does not.
    """
    words = _words(key)
    if not ALWAYS.isdisjoint(words):
        return True
    if number or not words:
        return False
    return (
        words[-1] in AT_THE_END
        or words == ["token"]
        or (words[-1] in AMBIGUOUS and not OPENING.isdisjoint(words[:-1]))
    )


def holds_secret(key: str, value: Any) -> bool:
    """Whether a key says that its value is secret, or might say so and the value looks like it."""
    if type(value) in (int, float):
        return is_secret(key, number=True)
    return is_secret(key) or (
        _is_ambiguous(key) and isinstance(value, str) and OPAQUE.fullmatch(value) is not None
    )


@lru_cache(10_000)
def _words(key: str) -> list[str]:
    return [word.lower() for word in WORD.findall(key.rpartition(".")[2])]


@lru_cache(10_000)
def _is_ambiguous(key: str) -> bool:
    return not AMBIGUOUS.isdisjoint(_words(key)[-1:])


def note(value: Any, key: str = "") -> None:
    """Remember a secret, to find it in whatever is written later.

    Args:
        value: the secret; anything but a text of some length is left alone.
        key: it is the value of.
    """
    shortest = SHORTEST if ALWAYS.isdisjoint(_words(key)) else SHORTEST_PASSWORD
    if isinstance(value, str) and len(value) >= shortest and value != REDACTED and "${" not in value:
        _values[value] = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")


def note_all(values: Any, *, key: str = "") -> None:
    """Remember all secrets among values of a configuration, plain or OmegaConf's, resolved or not.

    Args:
        values: of mappings, lists and scalars.
        key: they stand below this one, which says that they are secret.
    """
    if OmegaConf.is_config(values):
        values = OmegaConf.to_container(values)
    if isinstance(values, Mapping):
        for name, child in values.items():
            note_all(child, key=str(name) if holds_secret(str(name), child) else key)
    elif isinstance(values, list | tuple):
        for child in values:
            note_all(child, key=key)
    elif key:
        note(values, key)


def redact(values: Any, *, secret: bool = False) -> Any:
    """Return plain values without secrets; words that a `${…}` will be resolved from stay.

    Args:
        values: of mappings, lists and scalars.
        secret: they stand below a key that says so.
    """
    if isinstance(values, Mapping):
        return {name: _redact_entry(str(name), child, secret) for name, child in values.items()}
    if isinstance(values, list | tuple):
        return [redact(child, secret=secret) for child in values]
    if not isinstance(values, str):
        return values
    return REDACTED if secret and values and "${" not in values else redact_text(values)


def _redact_entry(name: str, value: Any, secret: bool) -> Any:
    if name == "_target_":
        return value
    found = holds_secret(name, value)
    return REDACTED if found and type(value) in (int, float) else redact(value, secret=secret or found)


def redact_text(text: str) -> str:
    """Return a text, such as an override, a message or an address, without secrets."""
    for value, pattern in sorted(_values.items(), key=lambda item: -len(item[0])):
        if value in text:
            text = pattern.sub(_unless_target, text)
    if "://" in text:
        text = ADDRESS.sub(rf"\1:{REDACTED}@", text)
    if "=" in text:
        text = "".join(_pairs(text))
    if "{" in text:
        text = ENTRY.sub(_without_value, text)
    return text


def _unless_target(found: re.Match[str]) -> str:
    before = found.string[max(0, found.start() - 200) : found.start()]
    return found[0] if "_target_" in before and TARGET.search(before) else REDACTED


def _pairs(text: str) -> Iterator[str]:
    """Yield a text in pieces, the values of secret `name=value` redacted."""
    done, sign = 0, text.find("=")
    while sign >= 0:
        name = _name_before(text, sign)
        if is_secret(name) or _is_ambiguous(name):
            beginning = GIVEN.match(text, sign + 1, sign + 1 + LONGEST)
            if beginning and _is_told(name, beginning[1]) and (whole := GIVEN.match(text, sign + 1)):
                yield text[done : sign + 1]
                yield REDACTED
                done = whole.end()
        sign = text.find("=", max(done, sign + 1))
    yield text[done:]


def _name_before(text: str, sign: int) -> str:
    first = sign
    while first and (text[first - 1].isalnum() or text[first - 1] in IN_NAMES):
        first -= 1
    return text[first:sign]


def _is_told(name: str, value: str) -> bool:
    """Whether a text gives a secret away: not by a reference, nor as code hands on a variable."""
    plain = value.strip("'\"")
    handed_on = "." not in name and "=" not in plain and plain.rpartition(".")[2] == name
    if handed_on or plain.startswith("${"):
        return False
    return holds_secret(name, plain)


def env(key: str, *default: Any) -> str | None:
    """OmegaConf's `oc.env`; what a variable with a telling name holds is remembered as a secret.

    Raises:
        KeyError: there is no such variable, and no default.
    """
    if key in os.environ:
        value: str | None = os.environ[key]
    elif default:
        value = None if default[0] is None else str(default[0])
    else:
        raise KeyError(f"Environment variable '{key}' not found")
    if is_secret(key) or _is_ambiguous(key):
        note(value, key)
    return value


def find_lost(config: DictConfig) -> Iterator[str]:
    """Yield which values of a recorded configuration are missing because they are secret, a line each."""
    for group in config:
        if group != "hydra":
            node = config._get_node(group)
            yield from _lost(OmegaConf.to_container(node) if OmegaConf.is_config(node) else None, str(group))


def _lost(plain: Any, key: str) -> Iterator[str]:
    if isinstance(plain, Mapping):
        for name, child in plain.items():
            yield from _lost(child, f"{key}.{name}")
    elif isinstance(plain, list):
        for place, child in enumerate(plain):
            yield from _lost(child, f"{key}[{place}]")
    elif is_redacted(plain):
        yield f"{key}: {HOW_AGAIN.format(key=key)}"


def is_redacted(value: Any) -> bool:
    """Whether a value was read from a record that a secret was kept out of."""
    return isinstance(value, str) and bool(re.search(rf"(^|[=:]\s*['\"]?){REDACTED}\b", value))


def restore(overrides: Iterable[str], given: Sequence[str]) -> list[str]:
    """Put overrides that were given again in the place of recorded ones without their secrets.

    Args:
        overrides: of a record.
        given: on the command line now.
    """
    known = {redact_text(text): text for text in given}
    return [known.get(text, text) if is_redacted(text) else text for text in overrides]


def _without_value(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    told = _is_told(name.strip(" '\""), value)
    return f"{name}{sign}{REDACTED if told else value}"
