"""Keeping secrets out of everything that is written: a run's files, a sweep's records, logs, the screen.

A secret is the value of a key that says so (`api_key`, `password`), of an environment variable of such a name
that the configuration refers to (`${oc.env:WANDB_API_KEY}`), and the password in an address. References
themselves are written as they are: whoever resumes a run or a sweep gets the secret from the environment
again, or must give it again.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
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
AT_THE_END = frozenset({"key", "token", "auth", "pat"})
"""Words that do so as its last one: `api_key`, but neither `key_dim` nor `tokens_per_batch`."""

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
"""Of a name in snake_case, kebab-case or camelCase."""

SHORTEST = 4
"""Characters of a value that is looked for within other text; shorter ones would be found in anything."""

END = r"""[\s,;&{}\[\]()'"]"""
VALUE = rf"""\$\{{[^}}]*\}}|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?:(?!{END}).)+?(?=:?(?:{END}|$))"""
ADDRESS = re.compile(r"(\w[\w+.-]*://[^\s:/?#@'\"]*):(?!\$\{)([^\s/?#'\"]+)@")
PAIR = re.compile(rf"([\w.@/-]*\w)(=)({VALUE})")
ENTRY = re.compile(rf"(?<=[{{,])(\s*['\"]?\w+['\"]?)(\s*:\s*)({VALUE})")

ADVICE = "key=value"
"""What messages say of overrides."""

HOW_AGAIN = "is secret and was not written down; give it again, as in '{key}=${{oc.env:NAME}}'"

_values: set[str] = set()
"""Secrets that this process has met."""


@cache
def is_secret(key: str, *, number: bool = False) -> bool:
    """Whether the last part of a dotted key, or the name of a variable, says that its value is secret.

    Args:
        key: its name.
        number: the value is one: then `password` says so, `max_token` does not.
    """
    words = [word.lower() for word in WORD.findall(key.rpartition(".")[2])]
    if not ALWAYS.isdisjoint(words):
        return True
    return not number and bool(words) and words[-1] in AT_THE_END


def note(value: Any) -> None:
    """Remember a secret, to find it in whatever is written later."""
    if isinstance(value, str) and len(value) >= SHORTEST and value != REDACTED and "${" not in value:
        _values.add(value)


def note_all(values: Any, *, secret: bool = False) -> None:
    """Remember all secrets among values of a configuration, plain or OmegaConf's, resolved or not."""
    if OmegaConf.is_config(values):
        values = OmegaConf.to_container(values)
    if isinstance(values, Mapping):
        for name, child in values.items():
            note_all(child, secret=secret or is_secret(str(name)))
    elif isinstance(values, list | tuple):
        for child in values:
            note_all(child, secret=secret)
    elif secret:
        note(values)


def redact(values: Any, *, secret: bool = False) -> Any:
    """Return plain values without secrets; words that a `${…}` will be resolved from stay.

    Args:
        values: of mappings, lists and scalars.
        secret: they stand below a key that says so.
    """
    if isinstance(values, Mapping):
        return {
            name: REDACTED
            if type(child) in (int, float) and is_secret(str(name), number=True)
            else redact(child, secret=secret or is_secret(str(name)))
            for name, child in values.items()
        }
    if isinstance(values, list | tuple):
        return [redact(child, secret=secret) for child in values]
    if not isinstance(values, str):
        return values
    return REDACTED if secret and values and "${" not in values else redact_text(values)


def redact_text(text: str) -> str:
    """Return a text, such as an override, a message or an address, without secrets."""
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    if "://" in text:
        text = ADDRESS.sub(rf"\1:{REDACTED}@", text)
    if "=" in text:
        text = PAIR.sub(_without_value, text)
    if "{" in text:
        text = ENTRY.sub(_without_value, text)
    return text


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
    if is_secret(key):
        note(value)
    return value


def find_lost(config: DictConfig) -> Iterator[str]:
    """Yield which values of a recorded configuration are missing because they are secret, a line each."""
    for group in map(str, config):
        if group != "hydra":
            node = config._get_node(group)
            yield from _lost(OmegaConf.to_container(node) if OmegaConf.is_config(node) else None, group)


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
    if name + sign + value == ADVICE:
        return ADVICE
    hidden = is_secret(name.strip(" '\"")) and not value.strip("'\"").startswith("${")
    return f"{name}{sign}{REDACTED if hidden else value}"
