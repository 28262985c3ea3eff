"""What a script may not do in its loop, alone and with a real master and parameter servers; and stop, scores and files."""

from __future__ import annotations

import gc

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shoal.trainer.refusal import Refused
from tests.trainer.toy import (
    EPOCHS,
    SAMPLES,
    SIZE,
    compare,
    data,
    halves,
    loader_of,
    loss_of,
    model,
    plainly,
    sgd,
    step,
    total,
)

# --- Refusals in the loop ---


def prepared(any_job, **options):
    m = model()
    return any_job.job.prepare(m, sgd(m), loader_of(), **options)


def two_steps(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            step(m, optimizer, batch)


def leaves(job, m, optimizer, batches):
    for _ in job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if number == 3:
                break


def second_pass(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        list(batches)


def only_reads(job, m, optimizer, batches):
    for _ in job.epochs():
        for x, _ in batches:
            m(x)
        for batch in batches:
            step(m, optimizer, batch)


def by_hand(job, m, optimizer, batches):
    for _ in job.epochs():
        for number, (x, y) in enumerate(batches):
            loss_of(m, x, y).backward()
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()


def outside(job, m, optimizer, batches):
    for batch in batches:
        step(m, optimizer, batch)


def behind(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        optimizer.step()


def twice_prepared(job, m, optimizer, batches):
    job.prepare(m, optimizer, batches)


def epochs_twice(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
    job.epochs()


def saves_state(job, m, optimizer, batches):
    optimizer.state_dict()


def loads_state(job, m, optimizer, batches):
    other = sgd(m)
    step(m, other, data()[:SIZE])
    optimizer.load_state_dict(other.state_dict())


def adds_a_group(job, m, optimizer, batches):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def leaves_the_epochs(job, m, optimizer, batches):
    for _ in job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        break
    gc.collect()
    job.save("model.safetensors")


REFUSED = {
    "SGD.step() is called a second time for one batch": two_steps,
    "epoch 1: the loop over the loader was left before its end": leaves,
    "the loader is iterated a second time in one epoch": second_pass,
    "without a backward pass of the model that prepare got: these batches count as skipped": only_reads,
    "prepare(..., accumulate=N)": by_hand,
    "outside of `for epoch in job.epochs():`": outside,
    "optimizer.step() outside of the loop over the loader": behind,
    "prepare is called a second time": twice_prepared,
    "job.epochs() is called a second time": epochs_twice,
    "optimizer.state_dict(): the optimizer's state is on the parameter servers": saves_state,
    "optimizer.load_state_dict after prepare": loads_state,
    "optimizer.add_param_group after prepare": adds_a_group,
    "the script left `for epoch in job.epochs():` in epoch 1 of 2": leaves_the_epochs,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_not_be_as_in_plain_pytorch_is_refused_alone_and_together_alike(any_job, reason):
    m, optimizer, batches = prepared(any_job)
    with pytest.raises(Refused) as refused:
        REFUSED[reason](any_job.job, m, optimizer, batches)
    assert reason in refused.value.reason
    assert refused.value.code == 78


def test_a_model_that_runs_after_one_step_has_the_new_values_and_no_other_step_may_follow(any_job):
    m = model()
    m, (first, second), batches = any_job.job.prepare(m, halves(m), loader_of())
    epochs, through = any_job.job.epochs(), iter(batches)
    next(epochs)
    x, y = next(through)
    loss_of(m, x, y).backward()
    before = m[0].weight.detach().clone()
    first.step()
    m(x)
    assert not torch.equal(m[0].weight, before), "it runs with the new parameters"
    with pytest.raises(
        Refused, match="a forward pass of module 0 comes after one optimizer's step and before the step of SGD"
    ):
        second.step()


def test_a_second_passs_iterator_makes_the_first_one_useless(any_job):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        old = iter(batches)
        step(m, optimizer, next(old))
        new = iter(batches)
        step(m, optimizer, next(new))
        with pytest.raises(Refused, match="an iterator of the loader is used after another one was begun"):
            next(old)
        break


def test_reading_a_batch_before_the_loop_takes_nothing_from_it(any_job):
    def train(side):
        if side.job is not None:
            return through(side)
        return plainly(side)

    def through(side):
        for epoch, batches in side.epochs:
            if epoch == 0:
                next(iter(batches))
            for x, y in batches:
                side.optimizer.zero_grad()
                loss_of(side.model, x, y).backward()
                side.optimizer.step()

    compare(any_job, train)
    assert any_job.skipped() == 0


def test_stop_ends_the_job_in_good_order_with_the_model_of_that_step(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    seen = 0
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            seen += 1
            if seen == 4:
                any_job.job.stop("good enough")
    assert seen <= 6
    saved = load_file(any_job.job.save(tmp_path / "model.safetensors"))
    for name, value in m.state_dict().items():
        assert torch.equal(saved[name], value)


def test_a_script_that_leaves_its_loops_after_stop_saves_the_model_of_that_step(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if number == 3:
                any_job.job.stop("good enough")
                break
        break
    saved = load_file(any_job.job.save(tmp_path / "model.safetensors"))
    for name, value in m.state_dict().items():
        assert torch.equal(saved[name], value)


@pytest.mark.parametrize("where", ["in the loop", "behind it"])
def test_every_evaluation_of_an_epoch_is_one_of_its_own(any_job, where):
    m, optimizer, batches = prepared(any_job)
    scores = []
    for _ in any_job.job.epochs():
        for number, batch in enumerate(batches):
            step(m, optimizer, batch)
            if where == "in the loop" and number in {2, 5}:
                scores.append((any_job.job.evaluate(total), total(m)))
        if where == "behind it":
            scores += [(any_job.job.evaluate(total), total(m)), (any_job.job.evaluate(lambda m: -total(m)), -total(m))]
    assert len({found for found, _ in scores}) == len(scores) == 2 * EPOCHS
    assert [found for found, _ in scores] == [expected for _, expected in scores]


def test_every_save_is_the_model_of_its_step(any_job, tmp_path):
    m, optimizer, batches = prepared(any_job)
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
        found = load_file(any_job.job.save(tmp_path / "best.safetensors"))
        assert all(torch.equal(found[name], value) for name, value in m.state_dict().items())
    again = load_file(any_job.job.save(tmp_path / "best.safetensors"))
    assert all(torch.equal(again[name], value) for name, value in m.state_dict().items())


def test_the_account_has_every_sample_once(any_job):
    m, optimizer, batches = prepared(any_job)
    seen = torch.zeros(SAMPLES)
    index = {tuple(x.tolist()): number for number, (x, _) in enumerate(data())}
    for _ in any_job.job.epochs():
        for batch in batches:
            step(m, optimizer, batch)
            for x in batch[0]:
                seen[index[tuple(x.tolist())]] += 1
    assert seen.tolist() == [EPOCHS] * SAMPLES
