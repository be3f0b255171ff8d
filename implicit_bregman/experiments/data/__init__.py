"""Data sets: digits and spirals need no files, MNIST, Fashion-MNIST and CIFAR-10 are read from a folder."""

from implicit_bregman.experiments.data.dataset import Dataset
from implicit_bregman.experiments.data.load import DATASETS, load_dataset

__all__ = ["DATASETS", "Dataset", "load_dataset"]
