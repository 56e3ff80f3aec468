"""What libraries say of errors reaches the user without colors and without advice to switch checks off."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from project.config.cli import report
from project.errors import InputError, one_line, strip_library_text, summarize
from project.modules.networks.pretrained import _read_state_dict as read_weights
from project.runs import checkpoint_files
from project.runs.run_folder import describe


class Unknown:
    """A class that no checkpoint may hold."""


def error_of_torch(content: bytes) -> Exception:
    with pytest.raises(Exception, match="Weights only load failed") as raised:
        torch.load(io.BytesIO(content), weights_only=True)
    return raised.value


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


FOREIGN = {"scalar": saved({"x": np.float64(1)}), "object": saved({"x": Unknown()})}
NOT = ("\x1b", "weights_only", "safe_globals", "still be loaded", "trust", "issue")


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_checkpoint_is_named_without_advice_to_run_it(tmp_path: Path, kind: str) -> None:
    error = error_of_torch(FOREIGN[kind])
    assert all(word in str(error) for word in NOT[:5])  # as torch words it, which this test is about
    file = tmp_path / "last.ckpt"
    file.write_bytes(FOREIGN[kind])
    with pytest.raises(InputError, match="Unsupported global: GLOBAL") as raised:
        checkpoint_files.read(file)
    with pytest.raises(InputError, match="Unsupported global: GLOBAL") as of_weights:
        read_weights(str(file))
    for text in (str(raised.value), str(of_weights.value), one_line(error), describe(error)):
        assert not [word for word in NOT if word in text]
        assert len(text) < 500
    assert "\n" not in str(raised.value)


def test_an_old_pickle_is_named_without_advice(tmp_path: Path) -> None:
    content = pickle.dumps({"x": Unknown()}, protocol=2)
    text = summarize(error_of_torch(content))
    assert text.startswith("Weights only load failed.")
    assert not [word for word in NOT if word in text]


CUDA = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1.\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (CUDA, "CUDA error: an illegal memory access was encountered"),
        ("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\", "red link"),
        ("It failed. To ignore it set TORCH_NCCL_ENABLE_MONITORING=0. It stays.", "It failed. It stays."),
        (
            "f has no deterministic implementation. You can turn off determinism just for this operation, or "
            "use warn_only=True. You can also file an issue at https://x.org/a.b to help us.",
            "f has no deterministic implementation.",
        ),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)",) * 2,
        ("data.path: photos/1.jpg is damaged; see torch.load(file, weights_only=True).",) * 2,
    ],
)
def test_what_is_wrong_stays_and_advice_goes(text: str, kept: str) -> None:
    assert " ".join(strip_library_text(text).split())[: len(kept)] == kept
    assert one_line(RuntimeError(text)).startswith(kept)
    for word in ("\x1b", "=1", "=0", "turn off", "TORCH_USE"):
        assert word not in strip_library_text(text)


def test_tracebacks_keep_their_lines_and_lose_the_advice(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="CUDA error") as raised:
        raise RuntimeError(CUDA + "\x1b[1mand more\x1b[0m")
    assert report(raised.value) == 1
    told = capfd.readouterr().err
    assert f'File "{__file__}"' in told
    assert "\nRuntimeError: CUDA error: an illegal memory access was encountered\n" in told
    assert "and more" in told
    assert not [
        word for word in ("\x1b", "LAUNCH_BLOCKING", "DSA") if word in told.partition("RuntimeError: ")[2]
    ]


def test_long_messages_are_cut() -> None:
    assert len(summarize(ValueError("x " * 5000))) <= 301
    assert summarize(EOFError()) == "EOFError"
