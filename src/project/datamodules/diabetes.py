"""Diabetes: 442 patients, 10 features, and the progression of the disease after a year; in the package."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, ClassVar

from project.datamodules.tabular import Tabular


class Diabetes(Tabular):
    """Table of Efron et al. 2004 ("Least Angle Regression", sec. 1), as in scikit-learn's `load_diabetes`.

    Features: age, sex, body mass index, blood pressure and six blood serum measurements, unscaled. The target
    `progression` runs from 25 to 346. A fixed 20 % of the rows is the test split.

    Args:
        input_shape: [10].
        num_classes: 1, the number of real values.
        base: arguments of `SupervisedDataModule`.
    """

    DATASET_FACTS: ClassVar = {"images": 354, "shape": (10,), "classes": 1}
    TARGET_TYPE: ClassVar[Any] = "real"

    def __init__(self, *, input_shape: Sequence[int] = (10,), num_classes: int = 1, **base: Any) -> None:
        table = str(files(__package__).joinpath("diabetes.csv"))
        super().__init__(
            table,
            "progression",
            target_type="real",
            name="diabetes",
            input_shape=input_shape,
            num_classes=num_classes,
            **base,
        )
