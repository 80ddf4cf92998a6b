"""Distances between two sets of pictures, from their features: by torch-fidelity, but for the Fréchet distance.

A distance takes features (N, F) and logits (N, K), K = 0 for none, and those of real pictures, (M, F), with their
Gaussian.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Gaussian = tuple[np.ndarray, np.ndarray]  # mean (F,), covariance (F, F), float64
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray, Gaussian], dict[str, float]]

SUBSETS, SUBSET, SPLITS, NEIGHBOURHOOD, MOST = 100, 1000, 10, 3, 10_000


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of (N, F) features, N >= 2."""
    return features.mean(0, dtype=np.float64), np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) (Dowson & Landau 1982), at least 0.

    S1 S2 has the eigenvalues of sqrt(S1) S2 sqrt(S1), which is symmetric, so that they are real and not negative but
    for rounding.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(0.0, float(distance))


def frechet_distance(
    features: np.ndarray, logits: np.ndarray, real: np.ndarray, reference: Gaussian
) -> dict[str, float]:
    """>= 0, as in FID (Heusel et al. 2017)."""
    return {"frechet": frechet(gaussian(features), reference)}


def kernel_distance(
    features: np.ndarray, logits: np.ndarray, real: np.ndarray, reference: Gaussian
) -> dict[str, float]:
    """The squared MMD with the kernel (x.y / F + 1)^3, mean and deviation over subsets (KID, Binkowski et al. 2018)."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(SUBSET, len(features), len(real))
    kernel = kid_features_to_metric(
        _tensor(features), _tensor(real), kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
    )
    return {"kernel": kernel[KEY_METRIC_KID_MEAN], "kernel_std": kernel[KEY_METRIC_KID_STD]}


def precision_and_recall(
    features: np.ndarray, logits: np.ndarray, real: np.ndarray, reference: Gaussian
) -> dict[str, float]:
    """0 .. 1, by balls around 3 nearest neighbours (Kynkaanniemi et al. 2019).

    Of the first `MOST` of each, and of no more real ones than generated: they depend on the numbers.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    most = min(MOST, len(features), len(real))
    spread = (
        np.linspace(0, len(real) - 1, most).round().astype(int)
    )  # real pictures may lie in the order of their classes
    own, others = _tensor(features[:most]), _tensor(real[spread])
    balls = prc_features_to_metric(own, others, prc_neighborhood=NEIGHBOURHOOD, save_cpu_ram=True, verbose=False)
    return {"precision": balls[KEY_METRIC_PRECISION], "recall": balls[KEY_METRIC_RECALL]}


def score(features: np.ndarray, logits: np.ndarray, real: np.ndarray, reference: Gaussian) -> dict[str, float]:
    """exp of the mean KL of class probabilities, mean and deviation over splits (Inception Score, Salimans et al.
    2016)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if not logits.shape[1]:
        return {}
    scores = isc_features_to_metric(_tensor(logits), min(SPLITS, len(logits)))
    return {"score": scores[KEY_METRIC_ISC_MEAN], "score_std": scores[KEY_METRIC_ISC_STD]}


def _tensor(array: np.ndarray) -> "Tensor":
    import torch

    return torch.from_numpy(np.array(array))


def quality_names(inception: bool) -> dict[str, str]:
    """The names of the distances: the field's, in Inception's features only."""
    if inception:
        return {
            "frechet": "FID",
            "kernel": "KID",
            "precision": "precision",
            "recall": "recall",
            "score": "Inception Score",
        }
    return {"frechet": "Fréchet distance", "kernel": "kernel distance", "precision": "precision", "recall": "recall",
            "score": "score by the classifier"}  # fmt: skip


def confusion(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(K, K) counts: asked class by row, the class that the classifier sees by column. labels (N,), logits (N, K)."""
    counts = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, logits.argmax(1)), 1)
    return counts
