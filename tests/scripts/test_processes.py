"""Processes, threads and signals in scripts."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LOOP = """
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
    job.save("out.safetensors")
    print("through", flush=True)
"""


def test_a_daemon_process_of_the_script_ends_with_it(run):
    result = run(
        """
    import multiprocessing

    job, model, optimizer, loader = begin()
    helper = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    helper.start()
    print("helper", helper.pid, flush=True)
    """
        + LOOP
        + """
    helper.terminate()
    helper.join()
    print("ended by", helper.exitcode, flush=True)
    left = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
    left.start()
    """
    )
    assert set(result.lines("ended by")) == {"-15"}
    assert result.counts() == [2.0]


def test_joining_in_a_thread_is_refused(refused):
    refused(
        """
        thread_codes = []

        def main():
            try:
                trainer.join(epochs=1, seed=7)
            except SystemExit as error:
                thread_codes.append(error.code)

        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        sys.exit(thread_codes[0])
        """,
        "trainer.join() is called in a thread",
        "main thread",
    )


def test_a_second_join_is_refused(refused):
    refused(
        """
        trainer.join(epochs=1, seed=7)
        trainer.join(epochs=1, seed=7)
        """,
        "trainer.join() is called a second time in one process",
    )


def test_a_second_process_of_one_trainer_is_refused(run_in_job):
    """A second process with the same trainer index, as launchers such as torchrun start it, is refused."""
    result = run_in_job(
        """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        begin()
    job, model, optimizer, loader = begin()
    os.write(writer, b"x")
    _, status = os.waitpid(child, 0)
    print("the other ended with", os.waitstatus_to_exitcode(status), flush=True)
    """
        + LOOP,
        trainers=1,
    )
    assert result.lines("the other ended with") == ["78"]
    assert "trainer 0 of this job is a living process already" in result.output
    assert "torchrun is not needed" in result.output
    assert result.counts() == [2.0]


def test_a_sample_that_always_kills_fails_the_job_and_is_named(run_in_job):
    result = run_in_job(
        """
        job, model, optimizer, loader = begin(epochs=1, loader=data(shuffle=False))
        for epoch in job.epochs():
            for i in loader:
                if 33 in i:
                    os.kill(os.getpid(), signal.SIGKILL)
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        complete=False,
    )
    assert result.outcome is not None, result.master
    assert result.outcome.state == "Failed"
    for sample in (32, 33, 34, 35):
        assert str(sample) in result.outcome.reason


# --- Signals ---


def test_a_trainers_own_handler_of_sigterm_runs_and_the_trainer_leaves_in_good_order(run_in_job):
    """After SIGTERM one trainer leaves in good order; the other one trains the rest."""
    result = run_in_job("""
        signal.signal(signal.SIGTERM, lambda *_: print("my handler", flush=True))
        job, model, optimizer, loader = begin()
        batches = 0
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
                batches += 1
                if os.environ["SHOAL_INDEX"] == "1" and batches == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]
    assert result.lines("my handler") == [""]
    assert result.codes == {0: 0, 1: 0}


def test_a_handler_that_is_set_in_the_loop_runs_too(run_in_job):
    result = run_in_job("""
        job, model, optimizer, loader = begin()
        batches = 0
        for epoch in job.epochs():
            signal.signal(signal.SIGTERM, lambda *_: print("my handler", flush=True))
            for i in loader:
                train(model, optimizer, i)
                batches += 1
                if os.environ["SHOAL_INDEX"] == "1" and batches == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]
    assert result.lines("my handler") == [""]
    assert result.codes == {0: 0, 1: 0}


def test_a_handler_of_a_script_alone_is_left_alone(run_alone):
    result = run_alone(
        """
    signal.signal(signal.SIGTERM, lambda *_: print("my handler", flush=True))
    job, model, optimizer, loader = begin()
    os.kill(os.getpid(), signal.SIGTERM)
    """
        + LOOP
    )
    assert result.lines("my handler") == [""]
    assert result.counts() == [2.0]


# --- Children ---


@pytest.mark.parametrize("ends", ["sys.exit(3)", "os._exit(3)"])
def test_a_forked_child_that_exits_does_nothing_to_the_job(run, ends):
    result = run(
        f"""
    job, model, optimizer, loader = begin()
    child = os.fork()
    if child == 0:
        {ends}
    _, status = os.waitpid(child, 0)
    print("child", os.waitstatus_to_exitcode(status), flush=True)
    """
        + LOOP
    )
    assert set(result.lines("child")) == {"3"}
    assert "the script ended" not in result.output
    assert result.counts() == [2.0]


def test_a_child_that_is_forked_in_a_batch_does_nothing_to_the_job(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                if n == 1:
                    child = os.fork()
                    if child == 0:
                        sys.exit(0)
                    os.waitpid(child, 0)
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert "the script ended" not in result.output
    assert result.counts() == [2.0]


def test_a_childs_error_does_nothing_to_the_job(run):
    result = run(
        """
    import multiprocessing

    def fails():
        raise ValueError("in the child")

    job, model, optimizer, loader = begin()
    child = multiprocessing.get_context("fork").Process(target=fails)
    child.start()
    child.join()
    print("child", child.exitcode, flush=True)
    """
        + LOOP
    )
    assert set(result.lines("child")) == {"1"}
    assert result.counts() == [2.0]


def test_a_subprocess_hears_sigterm(run):
    result = run(
        """
    job, model, optimizer, loader = begin()
    child = subprocess.Popen([sys.executable, "-S", "-c", "import signal; print('ready', flush=True); signal.pause()"],
                             stdout=subprocess.PIPE)
    child.stdout.readline()
    child.terminate()
    print("child", child.wait(), flush=True)
    child.stdout.close()
    """
        + LOOP
    )
    assert set(result.lines("child")) == {"-15"}
    assert result.counts() == [2.0]


def test_a_pool_of_processes_works_and_ends(run):
    result = run(
        """
    import multiprocessing

    job, model, optimizer, loader = begin()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print("pool", sum(pool.map(abs, range(-10, 0))), flush=True)
    """
        + LOOP
    )
    assert set(result.lines("pool")) == {"55"}
    assert result.counts() == [2.0]
