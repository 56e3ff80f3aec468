"""Optional packages are imported when chosen; a missing one is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from project.errors import InputError
from project.modules.networks.huggingface_model import HuggingFaceModel
from project.modules.networks.timm_model import TimmModel
from project.runtime.extras import import_extra, install_command


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timm", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError, match=r"^model=timm: needs timm, which is not installed; run uv sync --extra timm$"
    ):
        TimmModel((3, 8, 8), 2)
    with pytest.raises(InputError, match=r"^model=huggingface: needs transformers, .* --extra huggingface$"):
        HuggingFaceModel((3, 8, 8), 2, "folder")
    with pytest.raises(InputError, match=r"^data=x: needs no_such_package, which is not installed"):
        import_extra("no_such_package.part", "data=x", "x")


def test_the_remedy_fits_the_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert install_command("timm") == "uv sync --extra timm"
    monkeypatch.setattr("project.runtime.extras.PACKAGE", tmp_path / "site-packages" / "project")
    assert install_command("timm") == "pip install 'project[timm]'"


@pytest.mark.slow
def test_modules_of_the_package_import_no_optional_package() -> None:
    code = (
        "import sys, lightning; before = set(sys.modules); "  # torchmetrics imports what is installed
        "import project.modules.networks.timm_model, project.modules.networks.huggingface_model, "
        "project.datamodules.huggingface, project.datamodules.svhn; new = set(sys.modules) - before; "
        "print(new & {'timm', 'transformers', 'datasets', 'pyarrow', 'scipy'})"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert made.stdout.strip() == "set()"
