"""Both models of the flights example take the same inputs, and each parameter is in an optimizer."""

import pytest
import torch
from columns import CATEGORIES, CATEGORY_ROWS, CROSS_ROWS, CROSSES, NUMBERS
from data import Batch
from model import Logistic, WideAndDeep


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(
        torch.randint(CATEGORY_ROWS, (6, len(CATEGORIES)), generator=generator),
        torch.randint(CROSS_ROWS, (6, len(CROSSES)), generator=generator),
        torch.randn(6, len(NUMBERS), generator=generator),
        torch.ones(6),
    )


@pytest.mark.parametrize("kind", [Logistic, WideAndDeep])
def test_every_parameter_is_learnt_and_tables_sparsely(kind, batch):
    model = kind()
    logits = model(batch)
    logits.sum().backward()
    assert logits.shape == (6,)
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.tables() + model.dense()}
    assert all(table.grad.is_sparse for table in model.tables())
    assert not any(parameter.grad.is_sparse for parameter in model.dense())
