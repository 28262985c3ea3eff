"""Batches in scripts: steps, gradients, several optimizers, and skipped batches."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_second_step_for_one_batch_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                for _ in range(3):
                    train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "SGD.step() is called a second time for one batch",
        "epochs=",
    )


def test_accumulation_by_hand_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            optimizer.zero_grad()
            for n, i in enumerate(loader):
                model(i).backward()
                if (n + 1) % 3 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        job.save("out.safetensors")
        """,
        "an accumulation by hand",
        "accumulate=N",
    )


def test_accumulation_of_the_job_has_every_gradient(run):
    result = run("""
        job, model, optimizer, loader = begin(optimizer=lambda m: sgd(m, lr=4.0), accumulate=4)
        steps = []
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        for epoch in job.epochs():
            for i in loader:
                loss = model(i) / 4
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        print("steps", len(steps), flush=True)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]
    assert sum(map(int, result.lines("steps"))) == 2 * 16 // 4


def test_hooks_of_the_optimizer_are_called_with_every_step(run):
    result = run("""
        def hooked(model):
            optimizer = sgd(model)
            optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
            optimizer.register_step_post_hook(lambda *_: calls.append("after"))
            return optimizer

        calls = []
        job, model, optimizer, loader = begin(optimizer=hooked)
        steps = 0
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
                steps += 1
                assert calls == ["before", "after"] * steps
        print("steps", steps, flush=True)
        job.save("out.safetensors")
    """)
    assert sum(map(int, result.lines("steps"))) == 32
    assert result.counts() == [2.0]


def test_a_pre_hook_that_changes_gradients_counts(run):
    result = run("""
        def halve(optimizer, args, kwargs):
            for p in optimizer.param_groups[0]["params"]:
                p.grad.mul_(0.5)

        job, model, optimizer, loader = begin()
        optimizer.register_step_pre_hook(halve)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [1.0]


def test_a_max_norm_written_by_a_post_hook_is_refused(refused):
    refused(
        """
        @torch.no_grad()
        def renorm(optimizer, args, kwargs):
            model.w.clamp_(max=0.5)

        job, model, optimizer, loader = begin()
        optimizer.register_step_post_hook(renorm)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter w was written by the script after prepare",
        "clamp={...}",
    )


def test_a_second_prepare_is_refused(refused):
    refused(
        """
        job, first, optimizer, loader = begin()
        second = Counter()
        job.prepare(second, sgd(second), data())
        """,
        "prepare is called a second time",
        "nn.ModuleDict",
    )


def test_an_optimizer_that_prepare_did_not_get_is_refused(refused):
    refused(
        """
        job, model, _, loader = begin()
        optimizer = sgd(model)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "SGD.step() of an optimizer that prepare did not get",
        "optimizer that prepare did not get",
    )


def test_an_optimizer_is_the_same_object_after_prepare(run):
    result = run("""
        made = []
        job, model, optimizer, loader = begin(optimizer=lambda m: made.append(sgd(m)) or made[0])
        assert optimizer is made[0] and isinstance(optimizer, torch.optim.SGD)
        for epoch in job.epochs():
            for i in loader:
                train(model, made[0], i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_a_closure_is_called(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                def closure():
                    optimizer.zero_grad()
                    loss = model(i)
                    loss.backward()
                    return loss
                assert optimizer.step(closure) is not None
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_a_grad_scaler_trains(run):
    result = run("""
        job, model, optimizer, loader = begin()
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for epoch in job.epochs():
            for i in loader:
                optimizer.zero_grad()
                scaler.scale(model(i)).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1000.0)
                scaler.step(optimizer)
                scaler.update()
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_a_batch_that_overflows_a_grad_scaler_is_skipped(run):
    result = run("""
        job, model, optimizer, loader = begin(optimizer=lambda m: sgd(m, lr=0.25))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        skipped = 0
        for epoch in job.epochs():
            for i in loader:
                optimizer.zero_grad()
                scaler.scale(4 * model(i)).backward()
                scaler.step(optimizer)
                before = scaler.get_scale()
                scaler.update()
                skipped += len(i) * (scaler.get_scale() < before)
        print("skipped", skipped, flush=True)
        job.save("out.safetensors")
    """)
    skipped = sum(map(int, result.lines("skipped")))
    assert 0 < skipped <= 16
    assert result.model()["w"].sum() == 128 - skipped
    if result.outcome is not None:
        assert result.outcome.account.samples.skipped == skipped


def test_a_batch_that_the_script_skips_is_counted_as_skipped(run):
    result = run("""
        job, model, optimizer, loader = begin(epochs=1, loader=data(shuffle=False))
        for epoch in job.epochs():
            for i in loader:
                loss = model(i) * (float("nan") if 5 in i else 1.0)
                optimizer.zero_grad()
                if torch.isnan(loss):
                    continue
                loss.backward()
                optimizer.step()
        job.save("out.safetensors")
    """)
    w = result.model()["w"]
    assert w[4:8].tolist() == [0.0] * 4
    assert w.sum() == 60
    if result.outcome is not None:
        assert result.outcome.account.samples.skipped == 4


def test_an_epoch_of_which_a_script_skips_everything_is_warned_of_and_skipped(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                if epoch == 0:
                    continue
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [1.0]
    assert "warning" in result.output + result.master
    assert "the loader was iterated in epoch 1 without a backward pass" in result.output + result.master
    assert "the loader was iterated in epoch 2" not in result.output + result.master
    if result.outcome is not None:
        assert result.outcome.account.samples.skipped == 64


def test_weight_decay_that_the_script_changes_counts_from_then_on(run_alone, run_in_job):
    script = """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for group in optimizer.param_groups:
                group["weight_decay"] = float(epoch)
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """
    # With a weight decay and a learning rate of 1 a step leaves only its own batch in the model.
    # The job has one trainer: with two, the two servers may apply their last steps from different trainers.
    for result in (run_alone(script), run_in_job(script, trainers=1)):
        assert result.model()["w"].sum() == 4


def test_gradients_that_another_backward_adds_before_the_step_count(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                optimizer.zero_grad()
                model(i).backward()
                (2 * model(i)).backward()
                optimizer.step()
        job.save("out.safetensors")
    """)
    assert result.counts() == [6.0]


TWO = """
    def both(model):
        return [sgd(model.body), sgd(model.head)]

    job, model, (first, second), loader = begin(Pair, optimizer=both)
    for epoch in job.epochs():
        for i in loader:
"""


def test_two_optimizers_step_for_one_batch(run):
    result = run(
        TWO
        + """
            loss = model(i)
            for optimizer in (first, second):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (first, second):
                optimizer.step()
    job.save("out.safetensors")
    """
    )
    assert result.counts(entry="body.w") == result.counts(entry="head.w") == [2.0]


def test_running_a_part_between_its_step_and_the_others_is_refused(refused):
    refused(
        TWO
        + """
            train(model.body, first, i)
            second.zero_grad()
            (model.body(i).detach() + model.head(i)).backward()
            second.step()
    job.save("out.safetensors")
    """,
        "a forward pass of module body comes after one optimizer's step and before the step of SGD",
        "make all steps then",
    )


def test_parts_that_do_not_use_each_other_may_step_one_after_the_other(run):
    result = run(
        TWO
        + """
            train(model.body, first, i)
            train(model.head, second, i)
    job.save("out.safetensors")
    """
    )
    assert result.counts(entry="body.w") == result.counts(entry="head.w") == [2.0]


def test_the_optimizers_state_in_a_checkpoint_of_the_script_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "checkpoint.pt")
        job.save("out.safetensors")
        """,
        "optimizer.state_dict()",
        "leave it out of what the script saves",
    )


def test_a_new_parameter_group_after_prepare_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        """,
        "optimizer.add_param_group after prepare",
        "requires_grad_(False)",
    )


def test_gradients_that_are_never_cleared_are_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                model(i).backward()
                optimizer.step()
        """,
        "gradients that optimizer.step() has used are added to",
        "optimizer.zero_grad()",
    )
