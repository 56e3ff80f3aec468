"""Train, sweep and compare image classifiers: Lightning runs composed by Hydra."""
