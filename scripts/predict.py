"""Predict image files with a trained run: `python scripts/predict.py run=last input=photos`."""

from project.commands import predict

if __name__ == "__main__":
    predict()
