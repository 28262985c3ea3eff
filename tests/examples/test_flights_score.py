"""The area under the ROC curve equals its definition over all pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from score import area_under_curve
from torch import Tensor

SCORED = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40)


def by_definition(scores: Tensor, labels: Tensor) -> float:
    pairs = [(late, punctual) for late in scores[labels].tolist() for punctual in scores[~labels].tolist()]
    return sum((late > punctual) + 0.5 * (late == punctual) for late, punctual in pairs) / len(pairs)


@given(SCORED.filter(lambda pairs: len({label for _, label in pairs}) == 2), st.sampled_from([1.0, 0.37, 1e6]))
def test_equals_the_share_of_pairs_in_the_right_order(pairs, scale):
    scores = torch.tensor([float(score) for score, _ in pairs]) * scale
    labels = torch.tensor([label for _, label in pairs])
    assert area_under_curve(scores, labels.float()) == pytest.approx(by_definition(scores, labels), abs=1e-12)


def test_one_kind_of_label_has_no_area():
    with pytest.raises(ValueError, match="both kinds"):
        area_under_curve(torch.rand(3), torch.ones(3))
