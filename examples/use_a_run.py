"""Use a trained run from Python: `python examples/use_a_run.py last 1.png photos/*.jpg`."""

import sys

import torch

from project.inference.load_run import load_run
from project.inference.predict.predictions import predict
from project.runs.comparison import find_trained


def main(run: str, *files: str) -> None:
    """Repeat a run's test and predict the classes of image files.

    Args:
        run: run folder, sweep folder (its best run), or `last`.
        files: images of any size and mode.
    """
    trained = load_run(find_trained(run))
    trainer = trained.trainer()
    trainer.test(trained.module, trained.datamodule, verbose=False)
    print(f"{trained.checkpoint}: test accuracy {trainer.callback_metrics['test/acc']:.4f}")

    for prediction in predict(trained, files):
        print(f"{prediction.file}: {prediction.class_name}, {prediction.probability:.0%}")

    images = torch.zeros(1, *trained.input_shape)  # the module takes normalized images
    print(f"logits of the mean image: {trained.module(images).tolist()}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["last"]))
