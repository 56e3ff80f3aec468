"""Keeping secrets out of everything that is written: a run's files, a sweep's records, logs, the screen.

A secret is the value of a key with a telling name (`api_key`, `password`), also of one that a command line,
a mapping or an address gives (`api_key=…`, `{api_key: …}`, `user:…@host`); and what an environment variable
with a telling name holds that the configuration refers to (`${oc.env:WANDB_API_KEY}`). It is hidden below its
key, and wherever else its value occurs as a word of its own. References are written as they are: whoever
resumes a run or a sweep gets the secret from the environment again, or must give it again.

Short values are words and numbers of any text: those are hidden below their keys alone, see `note`.
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
"""Words that, as its last one, do so behind one of `OPENING`."""
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

SHORTEST = 8
"""Characters of a value that is looked for within other text."""
SHORTEST_PASSWORD = 4
"""The same of a value whose key has a word of `ALWAYS`, unless it is a number or one of `OPEN`."""
OPEN = ("", "null", "none", "true", "false", REDACTED.lower())
"""Values that are no secrets below any key."""

# Every pattern takes a time that grows as its text does: each begins at a sign that its name cannot hold.
NAME = re.compile(r"""(?:(?<![\w.@/-])[\w.@/-]+=|(?<=[{,])\s*['"]?\w+['"]?\s*:\s*)""")
"""A key within a text, up to its value: `x.api_key=`, or in a mapping `api_key: `."""
PIECE = re.compile(r"""'(?:[^'\\]|\\.){0,20000}'|"(?:[^"\\]|\\.){0,20000}"|\$\{[^}]{0,300}\}|.""", re.DOTALL)
"""Of a value: a quoted text, a reference, or a character."""
ENDS = re.compile(r""":?(?:[\s;&'"]|$)|,\s*(?:['"]?[\w.]+['"]?\s*[:=]|\s|$)""")
"""What a value ends before, outside of brackets: white space, or a comma before the next key."""
ADDRESS = re.compile(r"""(?<=[\w+.-])(://[^\s:/?#@'"]*):(?!\$\{)([^\s/?#'"]+)@""")

HOW_AGAIN = "is secret and was not written down; give it again, as in '{key}=${{oc.env:NAME}}'"

_values: dict[str, None] = {}
"""Secrets that this process has met, to be found in whatever is written."""


@lru_cache(10_000)
def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key, or the name of a variable, says that its value is secret."""
    words = _words(key)
    return not ALWAYS.isdisjoint(words) or bool(
        words
        and (
            words[-1] in AT_THE_END
            or words == ["token"]
            or (words[-1] in AMBIGUOUS and not OPENING.isdisjoint(words[:-1]))
        )
    )


def _words(key: str) -> list[str]:
    return [word.lower() for word in WORD.findall(key.rpartition(".")[2])]


def is_open(value: Any) -> bool:
    """Whether a value is no secret below any key: null, true or false, or a reference."""
    return value is None or isinstance(value, bool) or str(value).lower() in OPEN or "${" in str(value)


def find_secrets(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the secrets among plain values, each with the key that says so.

    Args:
        values: of mappings, lists and scalars.
        key: they stand below this one, which says that they are secret.
    """
    if isinstance(values, Mapping):
        for name, child in values.items():
            yield from find_secrets(child, str(name) if is_secret(str(name)) else key)
    elif isinstance(values, list | tuple):
        for child in values:
            yield from find_secrets(child, key)
    elif key and not is_open(values):
        yield key, values


def note(value: Any, key: str = "") -> None:
    """Remember a secret, to find it in whatever is written later.

    Shorter values than `SHORTEST` are left alone: 1, true or cat would be hidden in every text.

    Args:
        value: the secret.
        key: it is the value of.
    """
    text = str(value)
    password = not ALWAYS.isdisjoint(_words(key)) and not text.isdecimal()
    if len(text) >= (SHORTEST_PASSWORD if password else SHORTEST) and not is_open(value):
        _values[text] = None


def note_all(values: Any) -> None:
    """Remember all secrets among values of a configuration, plain or OmegaConf's, resolved or not."""
    for key, value in find_secrets(OmegaConf.to_container(values) if OmegaConf.is_config(values) else values):
        note(value, key)


def redact(values: Any, *, secret: bool = False) -> Any:
    """Return plain values without secrets; words that a `${…}` will be resolved from stay.

    Args:
        values: of mappings, lists and scalars.
        secret: they stand below a key that says so.
    """
    if isinstance(values, Mapping):
        return {
            name: child if name == "_target_" else redact(child, secret=secret or is_secret(str(name)))
            for name, child in values.items()
        }
    if isinstance(values, list | tuple):
        return [redact(child, secret=secret) for child in values]
    if secret and not is_open(values):
        return REDACTED
    return redact_text(values) if isinstance(values, str) else values


def redact_text(text: str) -> str:
    """Return a text, such as an override, a message or an address, without secrets."""
    if _values:
        text = _pattern(frozenset(_values)).sub(lambda found: found[1] or REDACTED, text)
    if "://" in text:
        text = ADDRESS.sub(rf"\1:{REDACTED}@", text)
    return "".join(_hide_by_key(text)) if "=" in text or "{" in text else text


@lru_cache(4)
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    """Find any of some secrets as a word of its own; or the name of a class, which is none."""
    words = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    return re.compile(rf"""(_target_['"]?\s*[:=]\s*['"]?[\w.]+)|(?<!\w)(?:{words})(?!\w)""")


def _hide_by_key(text: str) -> Iterator[str]:
    """Yield a text in pieces, the values of secret keys hidden."""
    done = 0
    for found in NAME.finditer(text):
        if found.start() >= done and is_secret(found[0].strip("=: \t\n'\"")):
            end = _end_of_value(text, found.end())
            if not is_open(text[found.end() : end].strip("'\"")):
                yield text[done : found.end()] + REDACTED
                done = end
    yield text[done:]


def _end_of_value(text: str, start: int) -> int:
    """Where the value ends that begins at a place of a text; brackets are part of it up to the last one."""
    depth, place = 0, start
    while place < len(text):
        piece = PIECE.match(text, place)
        assert piece is not None
        depth += (piece[0] in "([{") - (piece[0] in ")]}")
        if depth < 0 or (depth == 0 and len(piece[0]) == 1 and ENDS.match(text, place)):
            break
        place = piece.end()
    return place


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
    if value is not None and (is_secret(key) or not AMBIGUOUS.isdisjoint(_words(key)[-1:])):
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
