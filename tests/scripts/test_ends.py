"""The end of a script, early or late; its saves, logs and scores; and its continuation after a stop."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_every_save_writes_the_model_of_its_call(run):
    result = run("""
        job, model, optimizer, loader = begin(epochs=3)
        best = -1.0
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            score = job.evaluate(lambda m: float(m.w.mean()))
            assert score == epoch + 1
            if score > best:
                best = score
                job.save("best.safetensors")
            if epoch == 1:
                job.save("second.safetensors")
        job.save("out.safetensors")
    """)
    found = [result.counts(name) for name in ("best.safetensors", "second.safetensors", "out.safetensors")]
    assert found == [[3.0], [2.0], [3.0]]


def test_a_name_that_promises_another_format_is_warned_of(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("net.pth")
    """)
    message = "net.pth is a safetensors file, which torch.load cannot read: name it net.safetensors"
    assert message in result.output + result.master
    assert result.counts("net.pth") == [2.0]


def test_a_model_that_was_saved_can_be_tested_in_another_module(run):
    run("""
        import copy
        from safetensors.torch import load_file
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            if epoch == 0:
                job.save("best.safetensors")
        best = copy.deepcopy(model)
        best.load_state_dict(load_file("best.safetensors"))
        assert job.evaluate(lambda m: float(best.w.mean())) == 1.0
        assert job.evaluate(lambda m: float(m.w.mean())) == 2.0
    """)


def test_a_missing_complete_model_is_written_again(run_in_job):
    """The first run saved the model and failed after that; its file is lost, as on a pod's own disk."""
    result = run_in_job(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        where = Path(job.save("out.safetensors"))
        if not Path("again").exists():
            Path("again").touch()
            where.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        assert where.exists()
        """,
        trainers=1,
    )
    assert result.counts() == [2.0]


def test_a_save_every_few_batches_in_the_loop_has_the_steps_so_far(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                train(model, optimizer, i)
                if n % 10 == 9:
                    job.save(f"epoch-{epoch}-batch-{n}.safetensors")
        job.save("models/deep/out.safetensors")
    """)
    assert result.counts("models/deep/out.safetensors") == [2.0]
    for path in result.work.glob("epoch-*.safetensors"):
        assert set(result.counts(path.name)) <= {0.0, 1.0, 2.0}
    # One of two trainers gets at least half of the batches, but not always ten in one epoch.
    if result.outcome is None:
        assert result.model("epoch-0-batch-9.safetensors")["w"].sum() == 40
        assert result.model("epoch-1-batch-9.safetensors")["w"].sum() == 104


def test_two_evaluations_in_one_epoch_are_two(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            valid = job.evaluate(lambda m: {"valid": float(m.w.sum())})
            test = job.evaluate(lambda m: {"test": float(m.w.mean())})
            print("scores", valid, test, flush=True)
        job.save("out.safetensors")
    """)
    expected = {f"{{'valid': {64.0 * n}}} {{'test': {float(n)}}}" for n in (1, 2)}
    assert set(result.lines("scores")) == expected


def test_an_evaluation_every_few_batches_leaves_the_training_as_it_is(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                train(model, optimizer, i)
                if n % 5 == 4:
                    assert model.training
                    assert 0 < job.evaluate(lambda m: float(m.w.sum())) <= 128
                    assert model.training
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_numbers_of_numpy_and_tensors_are_logged(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                loss = train(model, optimizer, i)
                job.log(loss=np.mean(loss.detach().numpy()), whole=np.int64(3), one=loss, plain=1, yes=True)
                job.log(first=np.ones(1), double=np.float64(0.5))
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


# --- Early ends ---


def test_leaving_the_loop_over_the_batches_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(epochs=3)
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                if n == 3:
                    break
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "epoch 1: the loop over the loader was left before its end",
        "job.stop('why')",
        "Subset",
    )


def test_leaving_the_loop_over_the_epochs_is_refused_at_the_save(refused):
    refused(
        """
        job, model, optimizer, loader = begin(epochs=50)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            if job.evaluate(lambda m: float(m.w.mean())) >= 2:
                break
        job.save("out.safetensors")
        """,
        "the script left `for epoch in job.epochs():` in epoch 2 of 50",
        "job.stop('why') first",
    )


STOPPED = """
    job, model, optimizer, loader = begin(epochs=50)
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
        if job.evaluate(lambda m: float(m.w.mean())) >= 2:
            job.stop("good enough")
            AFTER
    job.save("out.safetensors")
"""


@pytest.mark.parametrize("after", ["break", "pass"])
@pytest.mark.parametrize("trainers", [1, 2])
def test_a_job_stops_after_an_epoch(run_in_job, after, trainers):
    """After job.stop() at the end of an epoch, only tasks of the next epoch that other trainers have started are trained."""
    result = run_in_job(STOPPED.replace("AFTER", after), trainers=trainers)
    assert "good enough" in result.outcome.reason
    assert set(result.codes.values()) == {0}
    assert result.outcome.account.samples.lost == 0
    assert set(result.counts()) <= {2.0, 3.0}


@pytest.mark.parametrize("after", ["break", "pass"])
def test_a_script_alone_stops_after_an_epoch(run_alone, after):
    result = run_alone(STOPPED.replace("AFTER", after))
    assert result.counts() == [2.0]
    assert "stopped by the script in epoch 2: good enough" in result.output


IN_EPOCH = """
    job, model, optimizer, loader = begin(epochs=50)
    batches = 0
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
            batches += 1
            if batches == 5:
                job.stop("enough batches")
                AFTER
        if batches >= 5 and "AFTER" == "break":
            break
    job.save("out.safetensors")
    print("through", flush=True)
"""


@pytest.mark.parametrize("after", ["break", "pass"])
@pytest.mark.parametrize("trainers", [1, 2])
def test_a_job_stops_in_the_middle_of_an_epoch(run_in_job, after, trainers):
    result = run_in_job(IN_EPOCH.replace("AFTER", after), trainers=trainers)
    assert "enough batches" in result.outcome.reason
    assert set(result.codes.values()) == {0}
    assert len(result.lines("through")) == trainers
    samples = result.outcome.account.samples
    assert result.model()["w"].sum() == samples.counted - samples.skipped
    assert samples.counted < 64 * 50


@pytest.mark.parametrize("after", ["break", "pass"])
def test_a_script_alone_stops_in_the_middle_of_an_epoch(run_alone, after):
    result = run_alone(IN_EPOCH.replace("AFTER", after))
    assert result.model()["w"].sum() == 20
    assert result.lines("through") == [""]


def test_a_script_without_a_loop_is_reported(run_alone):
    assert "the script ended without job.prepare(...)" in run_alone("trainer.join(epochs=1)").output
    assert "the script ended without `for epoch in job.epochs():`" in run_alone("job, *_ = begin()").output


SWALLOWS = """
    def main():
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                raise ValueError("the real reason")

    try:
        main()
    except Exception as error:
        print("failed:", error, flush=True)
"""
CAUGHT = "an exception may have been caught around the loop"


def test_a_caught_error_is_named_as_the_cause_alone(run_alone):
    assert CAUGHT in run_alone(SWALLOWS).output


def test_a_caught_error_is_named_as_the_cause_in_a_job(run_in_job):
    result = run_in_job(SWALLOWS, complete=False)
    assert CAUGHT in result.output
    assert CAUGHT in result.master


EXITS = """
    job, model, optimizer, loader = begin()
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
            sys.exit(0)
"""


def test_an_exit_in_the_loop_is_named_as_the_cause_alone(run_alone):
    output = run_alone(EXITS).output
    assert "the script ended in epoch 1 of 2" in output
    assert "sys.exit()" in output


def test_an_exit_in_the_loop_is_named_as_the_cause_in_a_job(run_in_job):
    result = run_in_job(EXITS, complete=False)
    assert "the script ended in epoch" in result.output
    assert "sys.exit()" in result.master


# --- Files ---


CHANGES = """
    Path("elsewhere").mkdir(exist_ok=True)
    os.chdir("elsewhere")
    job, model, optimizer, loader = begin()
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
    print("saved in", job.save("out.safetensors"), flush=True)
"""


def test_a_file_lies_where_the_job_started_although_the_script_changed_its_folder(run_in_job):
    result = run_in_job(CHANGES)
    assert result.counts() == [2.0]
    assert set(result.lines("saved in")) == {str(result.work / "out.safetensors")}


def test_a_file_of_a_script_alone_lies_in_its_present_folder(run_alone):
    result = run_alone(CHANGES)
    assert result.counts("elsewhere/out.safetensors") == [2.0]
    assert result.lines("saved in") == [str(result.work / "elsewhere/out.safetensors")]


def test_a_job_that_stops_between_two_epochs_finishes_what_was_begun_of_the_next_one(run_in_job):
    """Without evaluations a trainer gets a task of the next epoch while others still work on the current one."""
    result = run_in_job("""
        job, model, optimizer, loader = begin(epochs=1000, loader=data(batch_size=2))
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            if epoch == 3:
                job.stop("it was enough")
        job.save("out.safetensors")
    """)
    assert "it was enough" in result.outcome.reason
    assert result.model()["w"].sum() == result.outcome.account.samples.counted
    assert set(result.counts()) <= {4.0, 5.0, 6.0}


# --- Restarts ---


def test_another_learning_rate_counts_from_a_restart_on_and_is_reported(run_in_job):
    result = run_in_job(
        """
        rate = 0.5 if os.path.exists("changed") else 1.0
        job, model, optimizer, loader = begin(optimizer=lambda m: sgd(m, lr=rate))
        for epoch in job.epochs():
            if epoch == 1 and rate == 1.0:
                Path("changed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        trainers=1,
    )
    assert result.counts() == [1.5]
    assert "lr is 0.5 in this script, 1.0 when the job began; 0.5 counts from here" in result.master
