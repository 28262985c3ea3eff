"""One trainer and one parameter server equal a plain PyTorch loop on the same order of batches, 200 steps, to 1e-6."""

from __future__ import annotations

import warnings

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from shoal.protocol.messages import ModelSpec
from shoal.store import Store
from shoal.trainer.data.sample_order import SampleOrder
from shoal.trainer.job import seed_everything
from tests import parity
from tests.realjob import TESTS, RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def plain_loop(shape: ModelSpec) -> parity.Model:
    seed_everything(3)
    model = parity.Model()
    made = parity.optimizers(model)
    schedule = parity.scheduler(made[0])
    order, data = SampleOrder(shape, 3), parity.data()
    for epoch in range(2):
        for task in range(order.plan.tasks):
            for batch in range(order.plan.batches_in(task)):
                loss = parity.loss_of(model, data[order.indices(epoch, task, batch)])
                for optimizer in made:
                    optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([p for g in made[0].param_groups for p in g["params"]], 1.0)
                for optimizer in made:
                    optimizer.step()
                schedule.step()
    return model


@pytest.mark.parametrize("tcp", [False, True], ids=["shared memory", "tcp"])
@pytest.mark.parametrize("name", sorted(parity.OPTIMIZERS))
def test_the_model_is_that_of_a_plain_loop(zygote, tmp_path, monkeypatch, name, tcp):
    monkeypatch.setenv("PARITY", name)
    with RealJob(
        zygote,
        tmp_path / "j",
        script=TESTS / "parity.py",
        servers=1,
        trainers=1,
        epochs=2,
        tcp=tcp,
        variables={"PARITY": name, "PYTHONWARNINGS": "default"},
    ) as job:
        job.run_to_the_end(seconds=60)
        with Store.connect(job.etcd.endpoint, prefix=job.keys.prefix) as store:
            found = store.get(job.keys.shape)
        assert found is not None
        shape = msgspec.json.decode(found.value, type=ModelSpec)
        trained = load_file(job.model_path("parity.safetensors"))
    with warnings.catch_warnings():
        # PyTorch warns about the sparse gradients of Adagrad.
        warnings.simplefilter("ignore", UserWarning)
        model = plain_loop(shape)
    fresh = parity.Model()
    fresh.load_state_dict(trained, strict=True)
    for key, value in model.state_dict().items():
        assert torch.allclose(fresh.state_dict()[key], value, rtol=1e-6, atol=1e-6), key
