"""Processes start without PyTorch's compiler and compute the same results; a script that compiles imports it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
from shoal.pserver import service
from shoal.tensors import no_compiler, optimizers
if sys.argv[1] == "without":
    no_compiler.without_compiler()
optimizers.import_all()
import torch
found = {}
for name in (*optimizers.DENSE, *optimizers.SPARSE):
    torch.manual_seed(0)
    values = torch.nn.Parameter(torch.randn(7, 3))
    made = optimizers.build(name, [values], {"lr": 0.1})
    for _ in range(3):
        made.zero_grad()
        values.grad = torch.randn(7, 3)
        if name == "SparseAdam":
            values.grad = values.grad.to_sparse(1)
        made.step()
    made.load_state_dict(made.state_dict())
    found[name] = [values.tolist(), len(made.state_dict()["state"])]
imported = "torch._dynamo.eval_frame" in sys.modules
print(json.dumps([found, imported, torch._dynamo.is_compiling.__module__, "torch._dynamo.eval_frame" in sys.modules]))
"""


pytestmark = pytest.mark.slow  # the processes import the compiler


@pytest.fixture(scope="module")
def computed():
    def run(how):
        command = [sys.executable, "-W", "error", "-c", PROGRAM, how]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return {how: run(how) for how in ("with", "without")}


def test_every_optimizer_computes_the_same(computed):
    assert computed["with"][0] == computed["without"][0]
    assert len(computed["with"][0]) == 11


def test_the_compiler_is_not_imported(computed):
    assert (computed["with"][1], computed["without"][1]) == (True, False)


def test_any_other_function_imports_the_compiler(computed):
    assert computed["with"][2:] == computed["without"][2:]
    assert computed["without"][3]


LATER = """
import json, sys
import torch
from shoal import trainer
from shoal.trainer import distributed

def there():
    return "torch._dynamo" in sys.modules

def own(name):
    return getattr(vars(torch.optim.Optimizer)[name].__wrapped__, "__dynamo_disable", None).__module__

model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters())
torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
before = there()
finders = len(sys.meta_path)

@torch.compile(backend="eager")
def step():
    optimizer.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()

step()
step()
print(json.dumps([before, there(), own("zero_grad"), finders - len(sys.meta_path)]))
"""


def test_a_trainer_has_the_compiler_when_it_compiles_and_not_before():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATER], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    before, after, owner, finders = json.loads(done.stdout)
    assert (before, after) == (False, True)
    assert owner.startswith("torch._dynamo."), "what is not to be compiled is marked as PyTorch does it"
    assert finders == 1
