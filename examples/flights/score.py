"""How well scores put late flights before punctual ones."""

import torch
from torch import Tensor

__all__ = ["area_under_curve"]


def area_under_curve(scores: Tensor, labels: Tensor) -> float:
    """The area under the ROC curve, exactly: the chance that a random late flight scores above a random punctual one.

    A tie counts half. Nothing is drawn: the ranks of the late flights give the count of all pairs at once.

    Args:
        scores: [n], any real numbers.
        labels: [n], 1 for the flights that ought to score high, 0 for the others.

    Raises:
        ValueError: Without at least one of each label there are no pairs.
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
