"""Measures how well scores rank late flights above punctual ones."""

import torch
from torch import Tensor

__all__ = ["area_under_curve"]


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """Compute the exact area under the ROC curve: the probability that a late flight scores above a punctual one.

    A tie counts half. The ranks of the late flights give the count over all pairs, without sampling.

    Args:
        scores: [n], any real numbers.
        labels: [n], 1 for the flights that should score high, 0 for the others.

    Raises:
        ValueError: One of the two labels does not occur, so that there are no pairs.
    """
    positive = labels.bool()
    positives = int(positive.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        raise ValueError("the area under the curve needs labels of both kinds")
    _, place, count = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = count.cumsum(0).double() - (count.double() - 1) / 2
    rank_sum = float(mean_rank[place[positive]].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
