"""Distances between two sets of pictures, from their features: by torch-fidelity, but for the Fréchet distance."""

from dataclasses import dataclass

import numpy as np

Gaussian = tuple[np.ndarray, np.ndarray]  # mean (F,), covariance (F, F), float64

SUBSETS, SUBSET, SPLITS, NEIGHBOURHOOD, MOST = 100, 1000, 10, 3, 10_000


def gaussian(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of (N, F) features, N >= 2."""
    return features.mean(0, dtype=np.float64), np.atleast_2d(np.cov(features, rowvar=False, dtype=np.float64))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) (Dowson & Landau 1982), at least 0.

    S1 S2 has the eigenvalues of sqrt(S1) S2 sqrt(S1), which is symmetric, so that they are real and not negative but for rounding.
    """
    (mean_a, covariance_a), (mean_b, covariance_b) = a, b
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(0)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(0.0, float(distance))


@dataclass(frozen=True)
class Quality:
    """Of one set of pictures against real ones.

    Attributes:
        frechet: >= 0, as in FID (Heusel et al. 2017).
        kernel, kernel_std: squared MMD with the kernel (x.y / F + 1)^3, mean and deviation over subsets (KID, Binkowski et al. 2018).
        precision, recall: 0 .. 1, by balls around 3 nearest neighbours (Kynkaanniemi et al. 2019).
        score, score_std: exp of the mean KL of class probabilities (Inception Score, Salimans et al. 2016), mean and deviation over splits.
    """

    frechet: float
    kernel: float
    kernel_std: float
    precision: float
    recall: float
    score: float | None
    score_std: float | None


def quality(features: np.ndarray, logits: np.ndarray, real: np.ndarray, reference: Gaussian) -> Quality:
    """All of `Quality` for features (N, F) and logits (N, K), K = 0 for none, against real features (M, F), whose Gaussian is `reference`.

    Precision and recall are of the first `MOST` of each, and of no more real ones than generated: they depend on the numbers.
    """
    import torch
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    own, others = torch.from_numpy(np.array(features)), torch.from_numpy(np.array(real))
    most = min(MOST, len(own), len(others))
    spread = torch.linspace(0, len(others) - 1, most).round().long()  # real pictures may lie in the order of their classes
    kernel = kid_features_to_metric(own, others, kid_subsets=SUBSETS, kid_subset_size=min(SUBSET, len(own), len(others)), verbose=False)
    balls = prc_features_to_metric(own[:most], others[spread], prc_neighborhood=NEIGHBOURHOOD, save_cpu_ram=True, verbose=False)
    score = isc_features_to_metric(torch.from_numpy(np.array(logits)), min(SPLITS, len(logits))) if logits.shape[1] else {}
    return Quality(frechet(gaussian(features), reference), kernel[KEY_METRIC_KID_MEAN], kernel[KEY_METRIC_KID_STD],
                   balls[KEY_METRIC_PRECISION], balls[KEY_METRIC_RECALL],
                   score.get(KEY_METRIC_ISC_MEAN), score.get(KEY_METRIC_ISC_STD))  # fmt: skip


def quality_names(inception: bool) -> dict[str, str]:
    """What the distances are called: by the field's names in Inception's features only."""
    if inception:
        return {"frechet": "FID", "kernel": "KID", "precision": "precision", "recall": "recall", "score": "Inception Score"}
    return {"frechet": "Fréchet distance", "kernel": "kernel distance", "precision": "precision", "recall": "recall",
            "score": "score by the classifier"}  # fmt: skip


def confusion(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(K, K) counts: asked class by row, the class that the classifier sees by column. labels (N,), logits (N, K)."""
    found, k = np.zeros((logits.shape[1],) * 2, np.int64), logits.argmax(1)
    np.add.at(found, (labels, k), 1)
    return found
