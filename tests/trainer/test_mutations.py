"""A script's own writes to the model's values are refused with the parameter's name; harmless writes are not refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from shoal.trainer.refusal import Refused
from shoal.trainer.script.mutations import MutationDetector
from tests.trainer.toy import compare, halves, loader_of, loss_of, model, sgd


class Script:
    """A training loop that runs a function at a chosen place."""

    def __init__(self, any_job, tmp_path, *, make=sgd, build=model):
        self.job, self.path = any_job.job, tmp_path / "model.safetensors"
        self.model = build()
        own = make(self.model)
        self.before = copy.deepcopy(self.model.state_dict())
        self.model, self.optimizer, self.loader = self.job.prepare(self.model, own, loader_of())

    def run(self, stage, act):
        """Train, and call `act` once at the place `stage`, or after each step."""
        optimizers = self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]

        def at(here):
            if here == stage:
                act(self)

        at("before the loop")
        for epoch in self.job.epochs():
            for number, (x, y) in enumerate(self.loader):
                for one in optimizers:
                    one.zero_grad()
                loss = loss_of(self.model, x, y)
                loss.backward()
                if number == 4:
                    at(f"before a step of epoch {epoch + 1}")
                for one in optimizers:
                    one.step()
                at("behind each step")
                if number == 4:
                    at(f"behind a step of epoch {epoch + 1}")
                    at(f"before an evaluation in epoch {epoch + 1}")
                    self.job.evaluate(lambda _: 0)
            at(f"behind epoch {epoch + 1}")
            self.job.evaluate(lambda _: 0)
        at("before the last save")
        self.job.save(self.path)


def no_grad(act):
    def wrapped(script):
        with torch.no_grad():
            act(script)

    return wrapped


def fresh_optimizer(script):
    script.model[2].weight.grad = torch.ones_like(script.model[2].weight)
    torch.optim.SGD([script.model[2].weight], lr=0.1).step()


COUNTED = {
    "copy_": no_grad(lambda s: s.model[0].weight.copy_(torch.zeros(8, 4))),
    "an index": no_grad(lambda s: s.model[0].weight[2].fill_(1.0)),
    "add_": no_grad(lambda s: s.model[2].bias.add_(0.1)),
    "load_state_dict": lambda s: s.model.load_state_dict(s.before),
    "an initialiser": lambda s: nn.init.normal_(s.model[2].weight),
    "reset_parameters": lambda s: s.model[2].reset_parameters(),
    "an optimizer that prepare did not get": fresh_optimizer,
    "all of them": no_grad(lambda s: [p.mul_(0.999) for p in s.model.parameters()]),
}
"""Writes that increase autograd's version counter: they are detected at the next step."""

UNCOUNTED = {
    "data of one": lambda s: s.model[0].weight.data.mul_(0.5),
    "data of all": lambda s: [p.data.clamp_(-0.01, 0.01) for p in s.model.parameters()],
    "a view of data": lambda s: s.model[0].weight.data[5].zero_(),
    "numpy": lambda s: s.model[0].bias.detach().numpy().__setitem__(3, 7.0),
    "vector_to_parameters": lambda s: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(s.model.parameters()) * 0.5, s.model.parameters()
    ),
}
"""Writes past autograd: a single write to one parameter is detected only if that parameter is checked at that step."""

STAGES = [
    "before the loop",
    "before a step of epoch 1",
    "behind a step of epoch 2",
    "before an evaluation in epoch 1",
    "behind epoch 1",
    "before the last save",
]


@pytest.mark.parametrize(
    ("way", "stage"),
    [
        *(("copy_", stage) for stage in STAGES),
        *((way, "behind epoch 2" if way.startswith("an optimizer") else "behind a step of epoch 2") for way in COUNTED),
    ],
)
def test_a_parameter_that_the_script_writes_is_named(any_job, tmp_path, way, stage):
    script = Script(any_job, tmp_path)
    with pytest.raises(Refused, match=r"parameter [02]\.(weight|bias) was written by the script after prepare"):
        script.run(stage, COUNTED[way])


@pytest.mark.parametrize(
    ("way", "stage"),
    [
        *(("data of one", m) for m in ("before the loop", "behind epoch 2", "before the last save")),
        *((way, "behind epoch 1") for way in UNCOUNTED),
    ],
)
def test_a_write_past_autograd_between_the_passes_is_found_at_once(any_job, tmp_path, way, stage):
    script = Script(any_job, tmp_path)
    with pytest.raises(Refused, match=r"parameter [02]\.(weight|bias) was (written by the script|moved or got)"):
        script.run(stage, UNCOUNTED[way])


@pytest.mark.parametrize("way", UNCOUNTED)
def test_a_write_past_autograd_after_each_step_is_found_within_the_epoch(any_job, tmp_path, way):
    script = Script(any_job, tmp_path)
    with pytest.raises(Refused, match=r"parameter [02]\.(weight|bias) was (written by the script|moved or got)"):
        script.run("behind each step", UNCOUNTED[way])
    assert script.job._epoch == 0


@pytest.mark.parametrize("way", ["copy_", "data of all"])
def test_a_write_between_the_steps_of_two_optimizers_is_found(any_job, tmp_path, way):
    script = Script(any_job, tmp_path, make=halves)
    first, _ = script.optimizer
    plain = first.step

    def step(*args):
        plain(*args)
        (COUNTED | UNCOUNTED)[way](script)

    first.step = step
    with pytest.raises(Refused, match="was written by the script after prepare"):
        script.run("never", None)


def test_a_frozen_parameter_is_not_the_scripts_to_write_either(any_job, tmp_path):
    script = Script(any_job, tmp_path, make=lambda m: torch.optim.SGD(m[2].parameters(), lr=0.1))
    with pytest.raises(Refused, match=r"parameter 0\.weight was written by the script"):
        script.run("behind a step of epoch 1", no_grad(lambda s: s.model[0].weight.zero_()))


MOVED = {
    "to a dtype": lambda s: s.model.to(torch.float64),
    "half": lambda s: s.model.half(),
    "data that is assigned": lambda s: setattr(s.model[2].weight, "data", s.model[2].weight.data * 0.5),
}


@pytest.mark.parametrize("stage", ["before the loop", "before the last save"])
@pytest.mark.parametrize("way", MOVED)
def test_a_parameter_that_is_moved_is_named(any_job, tmp_path, way, stage):
    script = Script(any_job, tmp_path)
    with pytest.raises(Refused, match=r"parameter [02]\.weight was moved or got another dtype after prepare"):
        script.run(stage, MOVED[way])


CHANGED = {
    "a replaced module": (lambda s: s.model.__setitem__(2, nn.Linear(8, 1)), r"parameter 2\.weight was replaced"),
    "a replaced parameter": (
        lambda s: setattr(s.model[2], "bias", nn.Parameter(torch.zeros(1))),
        r"parameter 2\.bias was replaced",
    ),
    "a removed parameter": (lambda s: setattr(s.model[2], "bias", None), r"parameter 2\.bias was replaced or removed"),
    "an added module": (lambda s: s.model.append(nn.Linear(1, 1)), r"parameter 3\.weight was added to the model"),
    "a removed module": (
        lambda s: s.model.append(nn.Identity()) and s.model.pop(2),
        "was added to the model, or taken",
    ),
    "a parametrization": (
        lambda s: nn.utils.parametrizations.weight_norm(s.model[0]),
        r"parameter 0\.weight was replaced",
    ),
}


@pytest.mark.parametrize("stage", ["before the loop", "before the last save"])
@pytest.mark.parametrize("way", CHANGED)
def test_a_model_that_is_changed_is_named(any_job, tmp_path, way, stage):
    act, reason = CHANGED[way]
    script = Script(any_job, tmp_path)
    with pytest.raises(Refused, match=reason):
        script.run(stage, act)


@pytest.mark.parametrize("way", ["a replaced module", "a replaced parameter", "an added module"])
def test_a_model_that_is_changed_in_the_last_epoch_is_named_without_a_save(any_job, way):
    act, reason = CHANGED[way]
    m = model()
    m, optimizer, batches = any_job.job.prepare(m, sgd(m), loader_of())
    script = type("Script", (), {"model": m})

    def run():
        for epoch in any_job.job.epochs():
            for number, (x, y) in enumerate(batches):
                optimizer.zero_grad()
                loss_of(m, x, y).backward()
                optimizer.step()
                if (epoch, number) == (1, 6):
                    act(script)

    with pytest.raises(Refused, match=reason):
        run()


def test_parameters_that_are_given_to_an_optimizer_later_are_refused(any_job, tmp_path):
    def make(m):
        return torch.optim.SGD(m[2].parameters(), lr=0.1)

    script = Script(any_job, tmp_path, make=make)
    with pytest.raises(Refused, match="the parameters in an optimizer's param_groups were changed after prepare"):
        script.run("behind epoch 1", lambda s: s.optimizer.param_groups[0]["params"].append(s.model[0].weight))


def test_a_parameter_group_that_is_put_into_the_list_is_refused(any_job, tmp_path):
    def make(m):
        return torch.optim.SGD(m[2].parameters(), lr=0.1)

    def act(s):
        group = dict(s.optimizer.param_groups[0], params=[s.model[0].weight])
        s.optimizer.param_groups.append(group)

    script = Script(any_job, tmp_path, make=make)
    with pytest.raises(Refused, match="the param_groups of SGD were changed after prepare"):
        script.run("behind epoch 1", act)


def test_a_moving_average_of_torch_is_refused_and_one_of_another_model_is_not(any_job, tmp_path):
    script = Script(any_job, tmp_path)
    other = model()
    AveragedModel(other).update_parameters(other)
    with pytest.raises(Refused, match=r"AveragedModel\.update_parameters: .*; give prepare ema=DECAY"):
        AveragedModel(script.model).update_parameters(script.model)


class Norms(nn.Sequential):
    def __init__(self):
        torch.manual_seed(1)
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(3))


def test_what_harms_nothing_is_not_refused(any_job):
    def harmless(m, number):
        state = copy.deepcopy(m.state_dict())
        twin = copy.deepcopy(m)
        twin.load_state_dict(state)
        with torch.no_grad():
            norm = float(sum(p.norm() for p in m.parameters()))
            m.seen += 1
            m[1].running_mean.mul_(0.5)
        m.seen = m.seen * 2
        m.eval()
        m.train()
        m.to(torch.float32)
        m.to("cpu")
        m.register_forward_hook(lambda *_: None).remove()
        m[0].requires_grad_(number % 3 != 0)
        m.note = norm
        for parameter in m.parameters():
            parameter.note = "mine"
            parameter.grad = None
        nn.utils.parameters_to_vector(m.parameters()).mul_(2)
        next(m.parameters()).data.norm()

    def train(side):
        for number, (x, y) in enumerate(side.batches):
            side.optimizer.zero_grad()
            loss_of(side.model, x, y).backward()
            side.optimizer.step()
            harmless(side.model, number)

    compare(any_job, train, build=Norms)


@pytest.mark.parametrize("versions_constant", [False, True], ids=["alone", "together"])
def test_every_parameter_is_checked_within_as_many_batches_as_there_are(versions_constant):
    """A repeated write past autograd to any parameter is detected within as many batches as there are parameters."""
    many = nn.ModuleList(nn.Linear(2, 2) for _ in range(40))
    parameters = list(many.named_parameters())
    for name, written in parameters[::7]:
        watch = MutationDetector(
            many, parameters, groups=[{"params": list(many.parameters())}], versions_constant=versions_constant
        )

        def batches(watch=watch, written=written):
            for _ in parameters:
                watch.batch_begins()
                watch.check()
                for _, one in parameters:  # the step of the job
                    one.data.add_(0.01)
                watch.set_reference()
                written.data.mul_(0.5)
                watch.check()

        with pytest.raises(Refused, match=rf"parameter {name} was written"):
            batches()


def test_the_jobs_own_writes_are_not_the_scripts():
    many = nn.ModuleList(nn.Linear(2, 2) for _ in range(40))
    parameters = list(many.named_parameters())
    watch = MutationDetector(many, parameters, groups=[], versions_constant=False)
    for batch in range(300):
        watch.batch_begins()
        watch.check()
        if batch % 7:
            with torch.no_grad():
                for _, parameter in parameters:
                    parameter.add_(0.01)
            watch.set_reference()
        watch.check()
        if batch % 50 == 49:
            watch.check_all()
            watch.set_reference(whole=True)
            watch.check_all()


def test_values_that_are_no_numbers_are_equal_to_themselves():
    m = nn.Linear(2, 2)
    with torch.no_grad():
        m.weight.fill_(float("nan"))
    watch = MutationDetector(m, list(m.named_parameters()), groups=[], versions_constant=True)
    for _ in range(4):
        watch.batch_begins()
        watch.check()
    watch.set_reference(whole=True)
    watch.check_all()


@pytest.mark.parametrize("way", ["swapped", "negated"])
def test_values_that_change_places_or_signs_are_seen(way):
    m = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        m.weight.copy_(torch.arange(1.0, 17.0).reshape(4, 4) * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    watch = MutationDetector(m, [("weight", m.weight)], groups=[], versions_constant=True)
    watch._sample = None  # leaves only the checksum
    if way == "swapped":
        m.weight.data.copy_(m.weight.detach().flip(0).clone())
    else:
        m.weight.data.neg_()
    with pytest.raises(Refused, match="parameter weight was written"):
        watch.check_all()
