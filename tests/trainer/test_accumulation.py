"""Accumulation by hand is detected at the second batch; a batch that is skipped is not mistaken for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.trainer.optim.accumulation import Accumulation
from shoal.trainer.refusal import Refused
from tests.trainer.toy import SIZE, compare, loader_of, loss_of, model, sgd


def backward(*parameters):
    sum(p.sum() for p in parameters).backward()


@pytest.fixture
def two():
    return nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))


def test_gradients_that_are_added_to_those_of_a_batch_without_step_are_refused(two):
    accumulation = Accumulation(two)
    backward(*two)
    assert accumulation.end_batch(stepped=False, accumulating=False)
    backward(*two)
    for end_batch in (accumulation.check, lambda: accumulation.end_batch(stepped=True, accumulating=False)):
        with pytest.raises(Refused, match=r"an accumulation by hand\. .*prepare\(\.\.\., accumulate=N\)"):
            end_batch()


def test_backward_passes_of_one_batch_add_up(two):
    accumulation = Accumulation(two)
    for _ in range(3):
        backward(*two)
        backward(*two)
        assert accumulation.end_batch(stepped=True, accumulating=False)
        for parameter in two:
            parameter.grad = None


CLEARED = {
    "set to none": lambda p: setattr(p, "grad", None),
    "zeroed": lambda p: p.grad.zero_(),
    "replaced": lambda p: setattr(p, "grad", torch.zeros_like(p)),
}


@pytest.mark.parametrize("way", CLEARED)
def test_gradients_that_are_cleared_before_the_next_backward_pass_are_skipped(two, way):
    accumulation = Accumulation(two)
    for _ in range(3):
        backward(*two)
        assert accumulation.end_batch(stepped=False, accumulating=False)
        for parameter in two:
            CLEARED[way](parameter)
    backward(*two)
    accumulation.check()


def test_an_optimizer_that_clears_ends_the_watch_and_one_that_clears_too_late_does_not(two):
    accumulation = Accumulation(two)
    backward(*two)
    accumulation.end_batch(stepped=False, accumulating=False)
    accumulation.cleared()
    backward(*two)
    accumulation.check()
    accumulation.end_batch(stepped=False, accumulating=False)
    backward(*two)
    accumulation.cleared()
    with pytest.raises(Refused):
        accumulation.check()


def test_an_accumulation_passed_to_prepare_is_not_refused(two):
    accumulation = Accumulation(two)
    for _ in range(3):
        backward(*two)
        assert accumulation.end_batch(stepped=False, accumulating=True)
    accumulation.check()


def test_whether_there_was_a_gradient_is_returned(two):
    accumulation = Accumulation(two)
    assert not accumulation.end_batch(stepped=False, accumulating=False)
    backward(two[1])
    assert accumulation.end_batch(stepped=False, accumulating=False)


def test_it_is_found_in_a_part_that_not_every_batch_trains(two):
    """It is detected although the first batch trains both parts and the second one only the later part of the model."""
    accumulation = Accumulation(two)
    backward(*two)
    accumulation.end_batch(stepped=False, accumulating=False)
    backward(two[1])
    with pytest.raises(Refused):
        accumulation.check()


@pytest.mark.parametrize("size", [2, 4])
def test_an_accumulation_by_hand_is_refused_at_its_second_batch(any_job, size):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    seen = []

    def run():
        for _ in any_job.job.epochs():
            for number, (x, y) in enumerate(batches):
                seen.append(number)
                (loss_of(m, x, y) / size).backward()
                if number % size == size - 1:
                    optimizer.step()
                    optimizer.zero_grad()

    with pytest.raises(Refused, match="an accumulation by hand"):
        run()
    assert seen == [0, 1]


def test_a_loss_that_is_no_number_is_passed_over_with_and_without_its_gradients(any_job):
    def train(side):
        for number, (x, y) in enumerate(side.batches):
            if number % 7 == 3:
                continue  # the last batch's gradients are still there
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            if number % 7 == 5:
                continue
            side.optimizer.step()

    compare(any_job, train)
    assert any_job.skipped() == SIZE * (3 + 3)


def test_gradients_that_a_step_has_used_and_the_next_batch_adds_to_are_refused(any_job):
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    seen = []

    def run():
        for _ in any_job.job.epochs():
            for x, y in batches:
                seen.append(1)
                loss_of(m, x, y).backward()
                optimizer.step()

    with pytest.raises(Refused, match=r"gradients that optimizer\.step\(\) has used are added to by the next batch"):
        run()
    assert len(seen) == 2
