"""A script's error of several megabytes is recorded by a real master in a real etcd."""

from __future__ import annotations

import textwrap

import pytest

from shoal.protocol.text_limits import MOST_CHARACTERS
from tests.realjob import RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_an_error_of_megabytes_fails_the_job_with_its_end_and_not_the_master(zygote, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import torch
            from shoal import trainer
            job = trainer.join(epochs=1, seed=1)
            model = torch.nn.Linear(1, 1)
            model, optimizer, loader = job.prepare(
                model, torch.optim.SGD(model.parameters(), lr=0.1), torch.utils.data.TensorDataset(torch.ones(8, 1)), batch_size=2
            )
            for _ in job.epochs():
                for (x,) in loader:
                    raise ValueError("x" * 3_000_000 + " is what it is")
        """)
    )
    with RealJob(zygote, tmp_path / "j", script=script, trainers=1, epochs=None, final=frozenset({1})) as job:
        for _ in range(10):
            job.run_to_the_end(seconds=60)
            if job.found_outcome() is not None:
                break
            job.join(0)
        outcome = job.outcome()
        assert outcome.state == "Failed"
        assert "is what it is" in outcome.reason[-200:]
        assert len(outcome.reason) < MOST_CHARACTERS + 100
        assert job.restarts["master"] == 0
