"""The Dockerfile names what exists, installs from pip's own index, and runs without rights."""

import json
import re
import tomllib

from conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))


def test_copied_files_exist_and_reach_the_build() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    copied = {
        word for words in re.findall(r"^COPY (?!--)(.*) \S+$", LINES, re.MULTILINE) for word in words.split()
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_commands_and_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands = [json.loads(words) for words in re.findall(r"^CMD (\[.*\])$", LINES, re.MULTILINE)]
    assert len(commands) == 2
    assert {words[0] for words in commands} <= set(project["scripts"])
    (extra,) = re.findall(r'"\.\[(\w+)\]"', LINES)
    assert extra in project["optional-dependencies"]
    (module,) = re.findall(r'"-m", "([\w.]+)"', LINES)
    assert (ROOT / "src" / (module.replace(".", "/") + ".py")).exists()


def test_images_have_no_rights_and_no_other_registry() -> None:
    assert re.findall(r"^FROM (\S+)", LINES, re.MULTILINE) == ["python:${PYTHON}-slim"] * 2 + ["cpu"]
    assert re.findall(r"^USER (\S+)", LINES, re.MULTILINE) == ["1000"]
    assert set(re.findall(r"https?://[^\s/\"]+", LINES)) == {"http://127.0.0.1:8000"}
    assert "index-url" not in LINES
