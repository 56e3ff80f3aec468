"""Configuration files that must be refused, in one line with file and line number, and valid ones.

The files are in a folder outside the project: `--config-dir FILES/own experiment=NAME`.
"""

import os
from pathlib import Path

HEAD = "# @package _global_\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)

BAD: dict[str, tuple[str | bytes, str]] = {
    # Unknown keys.
    "root": (f"{HEAD}optm: {{lr: 0.5}}\n", ":2: optm: nothing reads it; did you mean optim?"),
    "target": (
        f"{HEAD}_target_: torch.nn.Linear\n",
        ":2: _target_: nothing reads it; write it below a group",
    ),
    "target_below": (
        f"{HEAD}a:\n  _target_: torch.nn.ReLU\n",
        ":3: a._target_=torch.nn.ReLU: a is not instantiated",
    ),
    "dots": (f"{HEAD}optim.lr: 0.5\n", ":2: optim.lr: nothing reads it; write lr: … below optim:"),
    "number": (f"{HEAD}1: 2\n", ":2: 1: nothing reads it; choose from"),
    "argument": (
        f"{HEAD}optim:\n  lrr: 1\n",
        ":3: optim.lrr: nothing reads it, Adam has no lrr; did you mean optim",
    ),
    "unread": (f"{HEAD}mine: &a 1\nother: {{a: [*a], b: '${{seed}}'}}\n", ":3: other: nothing reads it"),
    "path": (f"{HEAD}paths:\n  dta: x\n", ":3: paths.dta: nothing reads it; did you mean paths.data?"),
    "callback": (
        f"{HEAD}callbacks:\n  emma: {{decay: 1}}\n",
        ":3: callbacks.emma._target_: must name a class",
    ),
    "hydra_key": (f"{HEAD}hydra:\n  runn: 3\n", ":3: hydra.runn: no such key; did you mean hydra.run?"),
    "value": (f"{HEAD}optim:\n  lr: fast\n", ":3: optim.lr=fast: expected a number, got 'fast'"),
    # Headers and defaults lists.
    "header": ("# @package _gloabl_\nseed: 2\n", ":1: _gloabl_: nothing reads it; did you mean _global_?"),
    "no_header": ("seed: 2\n", ":1: experiment: nothing reads it; start its file with # @package _global_"),
    "no_option": (
        f"{HEAD}defaults:\n  - override /model: cnnn\n",
        ":3: model=cnnn: no such option; did you mean cnn?",
    ),
    "no_group": (
        f"{HEAD}defaults:\n  - override /optm: sgd\n",
        ":3: optm: no such group; did you mean optim?",
    ),
    "no_base": (
        f"{HEAD}defaults:\n  - mnist_mpl\n",
        ":3: experiment=mnist_mpl: no such option; did you mean mnist_mlp",
    ),
    "no_launcher": (
        f"{HEAD}defaults:\n  - override /hydra/launcher: locl\n",
        ":3: hydra/launcher=locl: no such option; did you mean local?",
    ),
    "no_override": (
        f"{HEAD}defaults:\n  - /optim: sgd\n",
        ":3: optim: is already in the defaults list; write override /optim: sgd",
    ),
    "two_selves": (f"{HEAD}defaults:\n  - _self_\n  - _self_\n", ":3: Duplicate _self_"),
    "defaults": (f"{HEAD}defaults: sgd\n", ":2: defaults: expected a list"),
    "entry": (f"{HEAD}defaults:\n  - 3\n", ":2: defaults: 3: expected - GROUP: OPTION, or - FILE"),
    "loop": (
        f"{HEAD}defaults:\n  - loop\n",
        ":3: defaults: circular (experiment/loop → experiment/",
    ),
    # Invalid YAML, or YAML that is not a configuration.
    "words": ("only words\n", ":1: a single value, but keys with values are needed"),
    "list": ("- a\n- b\n", ":1: a list, but keys with values are needed"),
    "tab": (f"{HEAD}optim:\n\tlr: 1\n", ":3: a tab; indent with spaces"),
    "bracket": (
        f"{HEAD}optim: {{lr: 0.1\nseed: 2\n",
        ":2: while parsing a flow mapping, did not find expected",
    ),
    "twice": (f"{HEAD}optim:\n  lr: 0.1\n  lr: 0.2\n", ":4: lr: repeated key; remove one"),
    "tag": (f"{HEAD}seed: !!python/object/apply:os.getpid []\n", ":2: could not determine a constructor"),
    "latin_1": (f"{HEAD}name: café\n".encode("latin-1"), ":2: not UTF-8 text; save the file as UTF-8"),
    "nul": (f"{HEAD}name: a\0b\n", ":2: character 0: control characters are not allowed"),
    "mark": (f"\ufeff{HEAD}sed: 2\n", ":2: sed: nothing reads it; did you mean seed"),
    "circle": (f"{HEAD}seed: ${{monitor}}\nmonitor: ${{seed}}\n", "refers to itself; give a value"),
    "itself": (f"{HEAD}name: ${{name}}\n", ":2: name: ${name} refers to itself; give a value"),
    "expression": (f"{HEAD}name: ${{\n", ":2: name: "),
    "laughs": (HEAD + LAUGHS, ":7: more than 200000 values with aliases expanded"),
    "alias": (f"{HEAD}a: &a [*a]\n", ":2: contains an alias of itself; write the values out"),
    "deep": (f"{HEAD}a: {'[' * 500}{']' * 500}\n", ":2: nested more than 100 levels deep"),
    "deepest": (f"{HEAD}a: {'[' * 100_000}{']' * 100_000}\n", ":2: "),
    "digits": (f"{HEAD}seed: {'1' * 10_000}\n", ": Exceeds the limit (4300 digits)"),
    "documents": (f"{HEAD}---\na: 1\n---\nb: 2\n", ":3: expected a single document in the stream"),
    "set": (f"{HEAD}name: !!set {{a}}\n", ":2: name: Value 'set' is not a supported"),
}
"""Names, contents, and the text that must follow the path in the refusal."""
NO_FILES = ("folder", "pipe", "lost_link")
OPTIONS = {
    "optim/mine": (
        "_target_: torch.optim.SGD\n_partial_: true\nmomentun: 0.9\n",
        ":3: optim.momentun: nothing reads it",
    ),
    "model/mine": (
        "_target_: project.modules.networks.mlp.MLP\nwidth: 3\ninput_shape: [1, 28, 28]\nnum_classes: 10\n",
        ":2: model.width: nothing reads it",
    ),
}
"""The same for options of other groups."""
GOOD = {
    "with_mark": f"\ufeff{HEAD}optim: {{lr: 0.5}}\n".encode(),
    "utf_16": f"{HEAD}optim: {{lr: 0.5}}\n".encode("utf-16"),
    "windows": f"{HEAD}optim: {{lr: 0.5}}\n".replace("\n", "\r\n").encode(),
    "read": f"{HEAD}mine: 0.5\noptim: {{lr: '${{mine}}'}}\n".encode(),
    "selected": f"{HEAD}mine: 0.5\noptim: {{lr: '${{oc.select:mine,1}}'}}\n".encode(),
    "relative": f"{HEAD}mine: 0.5\noptim: {{lr: '${{..mine}}'}}\n".encode(),
    "anchored": f"{HEAD}mine: &mine {{lr: 0.5}}\noptim: *mine\n".encode(),
    "merged": f"{HEAD}mine: {{optim: &mine {{lr: 0.5}}}}\noptim: {{<<: *mine, amsgrad: true}}\n".encode(),
    "folder_named": (
        f"{HEAD}mine: word\noptim: {{lr: 0.5}}\nhydra: {{run: {{dir: '${{paths.outputs}}/${{mine}}'}}}}\n"
    ).encode(),
    "based": f"{HEAD}defaults:\n  - with_mark\n".encode(),
    "more": f"{HEAD}optim: {{lr: 0.5, amsgrad: true}}\n".encode(),
}
"""Presets that set optim.lr=0.5."""


def write(folder: Path) -> None:
    """Write all files."""
    texts = {f"experiment/{name}": text for name, (text, _) in BAD.items()}
    texts |= {name: text for name, (text, _) in OPTIONS.items()} | {
        f"experiment/{n}": t for n, t in GOOD.items()
    }
    for name, text in texts.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    presets = folder / "experiment"
    (presets / "folder.yaml").mkdir()
    os.mkfifo(presets / "pipe.yaml")
    (presets / "lost_link.yaml").symlink_to("nowhere")
    with (presets / "large.yaml").open("wb") as file_of_a_gigabyte:
        file_of_a_gigabyte.truncate(1 << 30)


def bad_inputs() -> list[tuple[str, ...]]:
    """Return command lines that use each file, and the texts that the refusal must contain."""
    own = "--config-dir FILES/own"
    found = [
        (f"{own} experiment={name}", f"error: FILES/own/experiment/{name}.yaml", says)
        for name, (_, says) in BAD.items()
    ]
    found += [
        (f"{own} {name.replace('/', '=')}", f"error: FILES/own/{name}.yaml{says}")
        for name, (_, says) in OPTIONS.items()
    ]
    found += [
        (f"{own} experiment={name}", f"own/experiment/{name}.yaml is not a readable file")
        for name in NO_FILES
    ]
    found.append((f"{own} experiment=large", "large.yaml: larger than 4 MiB; a configuration is shorter"))
    found.append((f"{own} experiment=wrods", "experiment=wrods: no such option; did you mean words?"))
    return found
