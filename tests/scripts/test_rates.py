"""Learning rates in scripts: schedulers, passed to prepare or not, and rates set by hand."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def rates(result):
    return [round(value, 6) for value in result.model()["w"][::16].tolist()]


def script(*, make="None", given="", batch_end="pass", epoch_end="pass", epochs=1):
    text = """
    job = trainer.join(epochs=EPOCHS, seed=7)
    model = Counter()
    optimizer = sgd(model)
    scheduler = MAKE
    model, optimizer, loader = job.prepare(model, optimizer, data(batch_size=16, shuffle=False), GIVEN)
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
            BATCH_END
        EPOCH_END
    job.save("out.safetensors")
    """
    parts = {"EPOCHS": epochs, "MAKE": make, "GIVEN": given, "BATCH_END": batch_end, "EPOCH_END": epoch_end}
    for name, part in parts.items():
        text = text.replace(name, str(part))
    return text


EXPONENTIAL = "torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)"


def test_the_rate_of_a_step_is_that_of_its_call(run):
    """The script steps its scheduler after the optimizer, as the manual says."""
    result = run(script(make=EXPONENTIAL, given="scheduler=scheduler", batch_end="scheduler.step()"))
    assert rates(result) == [1.0, 0.5, 0.25, 0.125]


def test_a_given_scheduler_steps_by_itself(run):
    result = run(script(make=EXPONENTIAL, given="scheduler=scheduler"))
    assert rates(result) == [1.0, 0.5, 0.25, 0.125]


def test_a_scheduler_that_prepare_did_not_get_is_refused(refused):
    refused(
        script(make=EXPONENTIAL, batch_end="scheduler.step()"),
        "a learning rate scheduler works on the optimizer, but prepare did not get it",
        "scheduler=scheduler",
    )


def test_a_scheduler_that_is_made_after_prepare_is_refused(refused):
    text = script(batch_end="scheduler.step()").replace("for epoch in", f"scheduler = {EXPONENTIAL}\n    for epoch in")
    refused(text, "but prepare did not get it", "Make it before prepare")


def test_a_scheduler_stepped_once_an_epoch_needs_its_interval(refused):
    refused(
        script(make=EXPONENTIAL, given="scheduler=scheduler", epoch_end="scheduler.step()", epochs=2),
        "ExponentialLR.step() is called once an epoch",
        "scheduler_interval='epoch'",
    )


def test_a_scheduler_stepped_with_each_batch_is_refused_where_it_counts_epochs(refused):
    given = "scheduler=scheduler, scheduler_interval='epoch'"
    refused(
        script(make=EXPONENTIAL, given=given, batch_end="scheduler.step()", epochs=2),
        "in the loop over the batches, but prepare got scheduler_interval='epoch'",
    )


def test_a_scheduler_counts_epochs(run):
    given = "scheduler=scheduler, scheduler_interval='epoch'"
    result = run(script(make=EXPONENTIAL, given=given, epoch_end="scheduler.step()", epochs=3))
    assert rates(result) == [1.75] * 4


def test_a_scheduler_before_its_optimizer_is_refused(refused):
    text = script(make=EXPONENTIAL, given="scheduler=scheduler").replace("train(", "scheduler.step(); train(")
    refused(text, "scheduler.step() is called before optimizer.step()", "call it behind")


def test_a_one_cycle_counts_the_steps_of_accumulations(run):
    result = run("""
        job = trainer.join(epochs=2, seed=7)
        model = Counter()
        optimizer = sgd(model)
        loader = data()
        steps = 2 * len(loader) // 4
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
        model, optimizer, loader = job.prepare(model, optimizer, loader, scheduler=scheduler, accumulate=4)
        used = []
        optimizer.register_step_pre_hook(lambda o, *_: used.append(round(o.param_groups[0]["lr"], 6)))
        for epoch in job.epochs():
            for i in loader:
                loss = model(i) / 4
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                scheduler.step()
        print("used", *used, flush=True)
        plain = Counter()
        reference = sgd(plain)
        cycle = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=1.0, total_steps=steps, cycle_momentum=False)
        wanted = []
        for _ in range(steps):
            wanted.append(round(reference.param_groups[0]["lr"], 6))
            reference.step()
            if len(wanted) < steps:
                cycle.step()
        print("wanted", *wanted, flush=True)
        job.save("out.safetensors")
    """)
    used = sorted(float(value) for line in result.lines("used") for value in line.split())
    expected = sorted(float(value) for value in result.lines("wanted")[0].split())
    assert used == pytest.approx(expected)
    # The sum of (gradient of a sample, 1/4) times (rate of its step), with 16 samples per step.
    assert result.model()["w"].sum().item() == pytest.approx(16 / 4 * sum(expected), rel=1e-4)


def test_a_rate_set_by_hand_counts_from_then_on(run):
    text = script(epochs=2).replace("for i in", "optimizer.param_groups[0]['lr'] = 0.5 ** epoch\n        for i in")
    assert rates(run(text)) == [1.5] * 4


def test_a_rate_set_by_hand_in_addition_to_a_scheduler_is_refused(refused):
    text = script(make=EXPONENTIAL, given="scheduler=scheduler")
    text = text.replace("train(", "optimizer.param_groups[0]['lr'] = 0.1; train(")
    refused(text, "group['lr'] of an optimizer is set", "LambdaLR")


def test_get_last_lr_is_the_rate_of_the_next_step(run):
    result = run(
        script(
            make=EXPONENTIAL,
            given="scheduler=scheduler",
            batch_end="scheduler.step(); print('next', scheduler.get_last_lr()[0] == 0.5 ** (int(i[0]) // 16 + 1))",
        )
    )
    assert result.lines("next") == ["True"] * 4


def test_a_rate_that_the_plateau_moved_is_not_taken_for_the_scripts_own_in_a_new_life(run_in_job):
    killed = "Path('killed').exists() or (Path('killed').touch(), os.kill(os.getpid(), signal.SIGKILL))"
    result = run_in_job(
        script(
            make="torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)",
            given="scheduler=scheduler, scheduler_interval='epoch'",
            batch_end=f"epoch == 2 and ({killed})",
            epoch_end="scheduler.step(job.evaluate(lambda m: 1.0))",
            epochs=3,
        ),
        trainers=1,
    )
    assert "in this script" not in result.master
    assert rates(result) == [1.0 + 1.0 + 0.5] * 4


def test_the_best_score_of_a_plateau_is_the_jobs_in_a_new_life_too(run_in_job):
    """A restarted script gets the plateau scheduler's best score from the job, so that it saves only better models."""
    result = run_in_job(
        """
        job = trainer.join(epochs=4, seed=7)
        model = Counter()
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=9, threshold=0)
        model, optimizer, loader = job.prepare(
            model, optimizer, data(batch_size=16, shuffle=False), scheduler=scheduler, scheduler_interval="epoch"
        )
        for epoch in job.epochs():
            if epoch == 2 and not Path("killed").exists():
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            for i in loader:
                train(model, optimizer, i)
            score = job.evaluate(lambda m: [3.0, 1.0, 2.0, 0.5][epoch])
            if score < scheduler.best:
                job.save(f"best-{epoch}.safetensors")
            scheduler.step(score)
        job.save("out.safetensors")
        """,
        trainers=1,
    )
    assert (result.work / "killed").exists()
    assert sorted(path.name for path in result.work.glob("best-*")) == [f"best-{n}.safetensors" for n in (0, 1, 3)]


def test_a_plateau_follows_the_jobs_scores(run):
    result = run(
        script(
            make="torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)",
            given="scheduler=scheduler, scheduler_interval='epoch'",
            epoch_end="scheduler.step(job.evaluate(lambda m: 1.0))",
            epochs=3,
        )
    )
    # The first score is the best, so each later score halves the rate.
    assert rates(result) == [1.0 + 1.0 + 0.5] * 4
