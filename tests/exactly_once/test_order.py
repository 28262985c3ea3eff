"""Momentum under kills: the parameters equal a replay of the order in which the servers applied the updates.

A count shows samples lost or doubled; a momentum that was lost, doubled, or restored from another time than its parameters
shows here.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from shoal.protocol.messages import ModelSpec
from shoal.protocol.model_spec import digest
from shoal.protocol.slot_layout import pieces
from shoal.pserver.snapshots import files
from shoal.store import Store
from shoal.trainer.data.sample_order import SampleOrder
from tests.momentum import pushes
from tests.realjob import TESTS, Chaos, RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def replayed(order: list[tuple[int, int, int]], plan: SampleOrder, start: int, stop: int) -> torch.Tensor:
    """Return a slice of the parameters of a plain loop over the same batches in the same order."""
    each = pushes()[:, start:stop]
    values = torch.nn.Parameter(torch.zeros(stop - start, dtype=torch.float64))
    optimizer = torch.optim.SGD([values], lr=0.01, momentum=0.9)
    for epoch, task, batch in order:
        values.grad = each[plan.indices(epoch, task, batch)].sum(dim=0)
        optimizer.step()
    return values.detach()


@pytest.mark.parametrize("seed", range(2))
def test_the_servers_order_replayed_gives_the_same_parameters(zygote, tmp_path, seed):
    program = ("script", str(TESTS / "recording_pserver.py"))
    with RealJob(
        zygote,
        tmp_path / "j",
        script=TESTS / "momentum.py",
        epochs=5,
        trainers=3,
        variables={"COUNT_PAUSE": "0.02"},
        server_program=program,
    ) as job:
        Chaos(job, seed=100 + seed, kills=6).run(seconds=150)
        outcome = job.outcome()
        with Store.connect(job.etcd.endpoint, prefix=job.keys.prefix) as store:
            found = store.get(job.keys.shape)
        assert found is not None
        shape = msgspec.json.decode(found.value, type=ModelSpec)
        plan = SampleOrder(shape, 3)
        cut = pieces(shape, len(outcome.files))
        compared = 0
        for slot, name in outcome.files.items():
            path = next(Path(job.folder).glob(f"snapshots-*/{name}"))
            _, states = files.read(path, uid=job.keys.uid, digest=digest(shape), slots=[slot])
            order = [tuple(row) for row in states[slot]["order"].tolist()]
            batches = {
                (e, t, k) for e in range(5) for t in range(plan.plan.tasks) for k in range(plan.plan.batches_in(t))
            }
            assert sorted(order) == sorted(batches)
            for piece in cut[slot]:
                expected = replayed(order, plan, piece.start, piece.stop)
                assert torch.allclose(states[slot][f"dense/values@{piece.start}"], expected, rtol=1e-9, atol=1e-12)
                compared += len(piece)
        assert compared == 40
