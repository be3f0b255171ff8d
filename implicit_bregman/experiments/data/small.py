"""The sets that need no files: scikit-learn's digits and two spirals."""

from __future__ import annotations

import numpy as np

from implicit_bregman.experiments.data.dataset import SPLIT_SEED, Labels, Raw, Reals

SPIRAL_SAMPLES = {"train": 1000, "test": 500}
SPIRAL_TURNS, SPIRAL_NOISE = 1.5, 0.03


def digits() -> Raw:
    """The 8x8 digits, of each class 20 % for the test, split fixed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    features = np.asarray(bunch.data, dtype=np.float32)
    labels = np.asarray(bunch.target, dtype=np.int64)
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = shuffled[labels[shuffled] == label]
        test[members[: round(0.2 * len(members))]] = True
    return Raw(features[~test], labels[~test], features[test], labels[test], (1, 8, 8))


def spirals(seed: int) -> Raw:
    """Two noisy spirals in the plane, equal for equal seeds."""
    random = np.random.RandomState(seed)

    def draw(count: int) -> tuple[Reals, Labels]:
        labels = np.arange(count, dtype=np.int64) % 2
        radius = np.sqrt(random.uniform(0.01, 1.0, count))
        angle = 2 * np.pi * SPIRAL_TURNS * radius + np.pi * labels
        plane = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        noise = SPIRAL_NOISE * random.standard_normal((count, 2))
        return (plane + noise).astype(np.float32), labels

    return Raw(*draw(SPIRAL_SAMPLES["train"]), *draw(SPIRAL_SAMPLES["test"]), (2,))
