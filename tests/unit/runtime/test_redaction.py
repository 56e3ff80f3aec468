"""Secrets are redacted in all output, and other values are not."""

import io
import json
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import Compose
from omegaconf import OmegaConf

from project.config.hydra_security import WithoutSecrets, _hide_secrets
from project.config.resolvers import register_resolvers
from project.config.validation import find_problems
from project.errors import InputError
from project.runs.run_folder import RunFolder
from project.runs.sweep_folder import create
from project.runs.sweep_jobs import Job, Ledger, folder_name
from project.runtime import secrets, yaml_files
from project.runtime.secrets import is_secret, redact, redact_text, restore
from project.runtime.yaml_files import to_yaml
from project.sweeps.sweepers.grid import grid, read_points
from project.sweeps.sweepers.search_space import parse_space


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known_secrets", {})


def test_words_of_a_key_make_it_secret() -> None:
    telling = "api_key apiKey WANDB_API_KEY logger.x.token hf_token db_password secretName aws_secret_id"
    telling += " token license_key privateKey HF_HUB_TOKEN x.auth"
    innocent = "monitor keypoints tokens_per_batch key_dim num_heads tokenizer keyboard author lr"
    innocent += " key image_key label_key sort_key group_key pad_token data.key max_token"
    assert [key for key in telling.split() if not is_secret(key)] == []
    assert [key for key in innocent.split() if is_secret(key)] == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("mysql://user:pa%40ss@host/db", "mysql://user:REDACTED@host/db"),
        (
            "hydra.sweeper.storage=postgresql://u:p@h:5/d",
            "hydra.sweeper.storage=postgresql://u:REDACTED@h:5/d",
        ),
        ("+logger.w.api_key=abc123", "+logger.w.api_key=REDACTED"),
        ("+logger.w={_target_:a.B,api_key:abc,q:1}", "+logger.w={_target_:a.B,api_key:REDACTED,q:1}"),
        ("x.password='two words',b=2", "x.password=REDACTED,b=2"),
        ("https://h/p?token=abc&x=1", "https://h/p?token=REDACTED&x=1"),
        ("error: x.token=5: a whole number", "error: x.token=REDACTED: a whole number"),
        ("logger.w.api_key=${oc.env:KEY}", "logger.w.api_key=${oc.env:KEY}"),
        ("mysql://u:${oc.env:PW}@h/db", "mysql://u:${oc.env:PW}@h/db"),
        ("optim.lr=0.1 monitor=val/acc", "optim.lr=0.1 monitor=val/acc"),
        ("+x.monitor_key=9f86d081884c7d659a2feaa0", "+x.monitor_key=9f86d081884c7d659a2feaa0"),
        ("+x.api_key=abc,def", "+x.api_key=REDACTED"),
        ("+x.api_key=choice(abc,'d e') seed=1", "+x.api_key=REDACTED seed=1"),
        ("+x.credentials={user:a,pass:[b,c]},seed=1", "+x.credentials=REDACTED,seed=1"),
        ("+x={credentials:{user:a,pass:b},token:1}", "+x={credentials:REDACTED,token:REDACTED}"),
        ("+x.token=null +y.auth=true z.api_key=", "+x.token=null +y.auth=true z.api_key="),
        ("{'password': 'a b', 'lr': 1}", "{'password': REDACTED, 'lr': 1}"),
        (
            "data.image_key=image data.sort_key=val/acc_of_epoch_12",
            "data.image_key=image data.sort_key=val/acc_of_epoch_12",
        ),
        ("url=https://h/p?token=abc", "url=https://h/p?token=REDACTED"),
        (
            "sorted(names, key=key) open(token=token, api_key=self.api_key)",
            "sorted(names, key=key) open(token=REDACTED, api_key=REDACTED)",
        ),
        ("expected key=value", "expected key=value"),
        ("the key: none of these", "the key: none of these"),
    ],
)
def test_secrets_in_texts_are_redacted(text: str, written: str) -> None:
    assert redact_text(text) == written
    assert redact_text(written) == written


def test_a_configuration_is_written_without_secrets_and_with_its_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_resolvers()
    monkeypatch.setenv("SOME_API_KEY", "sesame-open")
    config = OmegaConf.create(
        {
            "logger": {"api_key": "${oc.env:SOME_API_KEY}", "login": "user/${oc.env:SOME_API_KEY}"},
            "own": {"token": "12345abc", "max_token": 5, "password": 12345, "key_dim": 64, "key": None},
            "copy": "${own.token}",
        }
    )
    raw = yaml.safe_load(to_yaml(config))
    assert raw["logger"] == OmegaConf.to_container(config)["logger"]
    assert raw["own"] == {
        "token": "REDACTED",
        "max_token": 5,
        "password": "REDACTED",
        "key_dim": 64,
        "key": None,
    }
    resolved = OmegaConf.to_container(config, resolve=True)
    secrets.remember_all(resolved)
    written = to_yaml(resolved)
    assert "sesame" not in written
    assert "12345abc" not in written
    assert yaml.safe_load(written)["logger"]["login"] == "user/REDACTED"
    assert resolved["logger"]["api_key"] == "sesame-open", "what the run itself works with"


def test_records_status_and_logs_hold_no_secret(tmp_path: Path) -> None:
    secrets.remember("open-sesame")
    run = RunFolder(tmp_path)
    run.write_status(command=["train.py", "+logger.w.api_key=abc"], error="bad open-sesame")
    job = Job(0, ["a.token=abc", "optim.lr=1"], ["a.token=abc"], folder_name(0, ["a.token=abc"]))
    ledger = Ledger(tmp_path / "jobs.jsonl")
    ledger.write(job)
    line = WithoutSecrets("a", logging.INFO, "", 0, "said %s", ("open-sesame",), None).getMessage()
    written = line + run.status_file.read_text() + ledger.file.read_text()
    assert "abc" not in written
    assert "open-sesame" not in written
    assert json.loads(run.status_file.read_text())["command"][1] == "+logger.w.api_key=REDACTED"
    assert job.overrides[0] == "a.token=abc", "what the job itself works with"


def test_a_redacted_secret_must_be_set_again(composer: Compose) -> None:
    config = composer("+logger.w.api_key=abc")
    recorded = OmegaConf.create(redact(OmegaConf.to_container(config)))
    lines = [line for line in find_problems(recorded) if "secret" in line]
    assert lines == [
        "logger.w.api_key: is secret and was not recorded; set it again, as in "
        "'logger.w.api_key=${oc.env:NAME}'"
    ]
    assert restore(["logger.w.api_key=REDACTED", "seed=1"], ["logger.w.api_key=abc"]) == [
        "logger.w.api_key=abc",
        "seed=1",
    ]


@pytest.mark.slow
def test_a_sweep_copies_no_secret(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf" / "logger.yaml"
    file.write_text("a: 1\napi_key: ${oc.env:KEY}\ntoken: null\n")
    create(str(tmp_path / "sweep"), [tmp_path / "conf"], [])
    file.write_text("a: 1\n  api_key: abc  # mine\n")
    with pytest.raises(InputError, match=r"logger\.yaml: api_key is secret.*oc\.env:NAME"):
        create(str(tmp_path / "sweep"), [tmp_path / "conf"], [])
    assert not (tmp_path / "sweep-2").exists()


@pytest.mark.slow
def test_a_sweep_leaves_out_files_beside_its_configuration_that_hold_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, beside = tmp_path / "conf", tmp_path / "beside"
    conf.mkdir()
    beside.mkdir()
    (beside / "services.yaml").write_text("db:\n  password: abc\n")
    (beside / "mine.yaml").write_text("a: 1\n")
    made = create(str(tmp_path / "sweep"), [conf, beside], [])
    assert [file.name for file in made.conf.iterdir()] == ["mine.yaml"]
    assert "services.yaml: password is secret" in capsys.readouterr().err
    monkeypatch.setitem(yaml_files.loaded_files, "services", beside / "services.yaml")
    with pytest.raises(InputError, match=r"services\.yaml: password is secret"):
        create(str(tmp_path / "sweep"), [conf, beside], [])


@pytest.mark.slow
def test_a_sweep_copies_linked_groups_and_follows_no_circle(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "a.yaml").write_text("a: 1\n")
    conf = tmp_path / "conf"
    conf.mkdir()
    for name in ("one", "two"):
        (conf / name).symlink_to(shared)
    (conf / "circle").symlink_to(conf)
    made = create(str(tmp_path / "sweep"), [conf], [])
    assert {str(file.relative_to(made.conf)) for file in made.conf.rglob("*.yaml")} == {
        "one/a.yaml",
        "two/a.yaml",
    }


def test_a_secret_is_found_as_a_word_of_its_own_and_no_class_is_renamed() -> None:
    secrets.remember_all({"api_key": "image_folder", "token": "image", "db_password": "abcd"})
    plain = {
        "_target_": "project.datamodules.image_folder.ImageFolder",
        "image_key": "image",
        "path": "/d/images",
    }
    assert redact(plain) == plain
    assert redact_text("_target_: project.image_folder.A") == "_target_: project.image_folder.A"
    assert redact_text("said image_folder, abcd and abcde") == "said REDACTED, REDACTED and abcde"
    plain = {"monitor_key": "9f86d081884c7d65", "key": "image"}
    assert redact(plain) == plain


def test_tracebacks_and_stacks_in_a_log_hold_no_secret() -> None:
    secrets.remember("open-sesame")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    try:
        raise RuntimeError("401 for open-sesame")
    except RuntimeError:
        told = sys.exc_info()
    handler.handle(WithoutSecrets("a", logging.ERROR, "", 0, "failed", (), told, sinfo="Stack: open-sesame"))
    assert "RuntimeError: 401 for REDACTED" in stream.getvalue()
    assert "Stack: REDACTED" in stream.getvalue()


def test_all_values_below_a_secret_key_are_redacted() -> None:
    plain = {"credentials": {"user": "me", "pin": 12, "more": [1.5, "x"], "lazy": True, "at": None}, "lr": 12}
    hidden = {"user": "REDACTED", "pin": "REDACTED", "more": ["REDACTED"] * 2, "lazy": True, "at": None}
    assert redact(plain) == {"credentials": hidden, "lr": 12}


def test_short_values_are_hidden_below_their_keys_alone() -> None:
    secrets.remember_all({"token": "1", "api_key": "cat", "auth": True, "password": "", "secret": "true"})
    secrets.remember_all({"a_password": "1234", "b_password": "none", "hf_token": 1})
    told = "epoch 1 of 1234: cat true none 0.1"
    assert redact_text(told) == told
    secrets.remember_all({"token": 12345678, "password": "fish", "api_key": "sesame-1"})
    assert redact_text("12345678 fish fishes sesame-1") == "REDACTED REDACTED fishes REDACTED"


def test_output_contains_no_secret() -> None:
    secrets.remember("open-sesame")
    stream = io.StringIO()
    for _ in range(2):
        _hide_secrets(stream)
    print("said", "open-sesame", "of a.token=12", file=stream)
    assert stream.getvalue() == "said REDACTED of a.token=REDACTED\n"


@pytest.mark.parametrize(
    "override",
    [
        "+w.api_key=sesame1,sesame2",
        "+w={api_key:sesame1},{api_key:sesame2}",
        "w.password=range(1,3)",
        "hydra.sweeper.storage='mysql://u:sesame1@h/d','mysql://u:sesame2@h/d'",
    ],
)
def test_a_sweep_over_secrets_is_refused(override: str, tmp_path: Path) -> None:
    key = override.partition("=")[0]
    message = rf"{re.escape(key)}: holds a secret, .* as in '{re.escape(key)}=\${{oc\.env:NAME}}'$"
    for refuse in (grid, parse_space):
        with pytest.raises(InputError, match=message) as found:
            refuse(["seed=1,2", override], None)  # type: ignore[arg-type,operator]
        assert "sesame" not in str(found.value)
    file = tmp_path / "points.txt"
    file.write_text(f"seed=1\nseed=2 {override.partition(',')[0]}\n" if "range" not in override else override)
    if "'" not in override:
        with pytest.raises(InputError, match=rf"points\.txt: line \d: {message}"):
            read_points(str(file), [], None)  # type: ignore[arg-type]


def test_a_sweep_over_references_to_secrets_is_allowed() -> None:
    loader = SimpleNamespace(get_group_options=lambda _: [])
    overrides = ["+w.api_key='${oc.env:A}','${oc.env:B}'", "x.key=image,label"]
    points = grid(overrides, loader)  # type: ignore[arg-type]
    assert len(points) == 4


@pytest.mark.parametrize(
    "text", ["w.api_key: a,b\n", "password: 12345678\n", "credentials:\n  user: me\n", "w: {token: [1, 2]}\n"]
)
def test_a_sweep_copies_no_file_with_a_secret_in_any_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "sweep.yaml").write_text(text)
    with pytest.raises(InputError, match=r"sweep\.yaml: [\w.]+ is secret, .* write [\w.]+: \${oc\.env:NAME}"):
        create(str(tmp_path / "sweep"), [tmp_path / "conf"], [])
    assert not (tmp_path / "sweep").exists()
