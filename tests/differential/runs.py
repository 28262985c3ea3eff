"""Runs a spec's script: in plain PyTorch, alone, and in a job of a real master, parameter servers and trainers."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import shoal.master.handlers.servers
import shoal.master.service
import shoal.master.state.job
import shoal.pserver.service
from shoal.trainer.alone import AloneJob
from shoal.trainer.data.dataset import describe_data
from shoal.trainer.data.sample_order import SampleOrder
from shoal.trainer.job import seed_everything
from shoal.trainer.refusal import Refused
from shoal.trainer.script.description import describe
from shoal.trainer.script.foreign_optimizers import guard
from tests.differential.building import Built, build
from tests.differential.scripts import CLAMP, MAX_NORM, Found, Script
from tests.differential.spec import Spec
from tests.trainer.one_process import OneProcess

__all__ = ["Result", "one_thread", "run_alone", "run_plain", "run_together", "run_two"]


@dataclass
class Result:
    """The result of running a script."""

    found: Found
    values: dict[str, Tensor] = field(default_factory=dict)
    """The model's values at the end, without its sparse tables: a trainer has only some of their rows."""
    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    refused: str = ""


class _Batches:
    """The batches of each epoch, in the job's order."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain

    def __iter__(self) -> Iterator[Any]:
        yield from self._plain.batches()


class Plain:
    """Runs the script in plain PyTorch."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._epoch = 0
        self._stopped = False
        self._moved = False
        self._average: list[Tensor] = []
        self.begins = self.closes = True
        self.saved: dict[str, dict[str, Tensor]] = {}

    def prepare(
        self,
        model: nn.Module,
        optimizer: Any,
        loader: Any,
        *,
        accumulate: int = 1,
        task_batches: int | None = None,
        **_: Any,
    ) -> tuple[Any, Any, Any]:
        optimizers = optimizer if isinstance(optimizer, list) else [optimizer]
        data = describe_data(loader, batch_size=None)
        described = describe(model, optimizers, data, accumulate=accumulate, task_batches=task_batches)
        self._model, self._loader, self._accumulate = model, loader, accumulate
        self._trained = [(d.name, p) for d, p in zip(described.shape.dense, described.dense, strict=True)]
        self._order = SampleOrder(described.shape, self._spec.seed, data.order)
        for one in optimizers:
            one.register_step_post_hook(self._stepped)
        return model, optimizer, _Batches(self)

    def _stepped(self, *_: Any) -> None:
        self._moved = True
        if self._spec.clamp:
            low, high = next(iter(CLAMP.values()))
            with torch.no_grad():
                for name, parameter in self._trained:
                    if name.endswith("head.weight"):
                        parameter.clamp_(low, high).renorm_(2, 0, next(iter(MAX_NORM.values())))

    def _move_average(self) -> None:
        if not self._spec.ema:
            return
        now = [parameter.detach().clone() for _, parameter in self._trained]
        if self._moved:
            decay = self._spec.ema
            pairs = zip(self._average or now, now, strict=True)
            self._average = [decay * old + (1 - decay) * new for old, new in pairs]
        self._moved = False

    def epochs(self) -> Iterator[int]:
        for epoch in range(self._spec.epochs):
            self._epoch = epoch
            yield epoch
            if self._stopped:
                return

    def batches(self) -> Iterator[Any]:
        """Yield the batches of the current epoch."""
        plan = self._order.plan
        count = 0
        for task in range(plan.tasks):
            for batch in range(plan.batches_in(task)):
                self.begins = count % self._accumulate == 0
                count += 1
                self.closes = count % self._accumulate == 0 or count == plan.batches
                indices = self._order.indices(self._epoch, task, batch)
                yield self._loader.collate_fn([self._loader.dataset[index] for index in indices])
                self._move_average()
            if self._stopped:
                return  # after stop() a started task is still finished

    def evaluate(self, score: Any) -> Any:
        training = self._model.training
        self._model.eval()
        with torch.no_grad():
            found = score(self._model)
        self._model.train(training)
        return found

    def save(self, path: Path) -> str:
        state = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        self.saved[path.name] = state
        if self._spec.ema:
            self._move_average()
            now = [parameter.detach().clone() for _, parameter in self._trained]
            average = {n: a for (n, _), a in zip(self._trained, self._average or now, strict=True)}
            tied = {name: average[known] for name, known in self._names().items() if known in average}
            self.saved[f"{path.stem}-ema{path.suffix}"] = state | tied
        return str(path)

    def _names(self) -> dict[str, str]:
        """Map every name of a parameter to its first name."""
        first = {id(p): name for name, p in self._model.named_parameters()}
        return {name: first[id(p)] for name, p in self._model.named_parameters(remove_duplicate=False)}

    def log(self, **values: Any) -> None: ...

    def stop(self, reason: str) -> None:
        del reason
        self._stopped = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings about schedulers whose first step is skipped and about sparse tensors (once per process)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Sparse invariant checks are implicitly disabled")
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
        try:
            yield
        finally:
            guard(None)


def _ended(script: Script, refused: str) -> Result:
    result = Result(script.found, refused=refused)
    if refused:
        return result
    sparse = {name for name, _ in _tables(script.built)}
    with torch._C.DisableTorchFunctionSubclass():
        state = script.built.model.state_dict()
        result.values = {name: value.detach().clone() for name, value in state.items() if name not in sparse}
    if script.plain:
        result.files = script.host.saved
    else:
        paths = sorted(script.folder.glob("*.safetensors"))
        result.files = {path.name: load_file(path) for path in paths}
    return result


def _tables(built: Built) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.weight", m) for name, m in built.model.named_modules() if getattr(m, "sparse", False)]


def _run(spec: Spec, host: Any, built: Built, folder: Path, *, plain: bool = False) -> Result:
    script = Script(spec, host, built, folder, plain=plain)
    refused = ""
    try:
        script.run()
    except Refused as error:
        refused = error.reason
    return _ended(script, refused)


def run_plain(spec: Spec) -> Result:
    """Run the script in plain PyTorch, with the job's order of batches."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        return _run(spec, Plain(spec), build(spec), Path(folder), plain=True)


def run_alone(spec: Spec) -> Result:
    """Run the script in a job of one process."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        seed_everything(spec.seed)
        job = AloneJob(epochs=spec.epochs, seed=spec.seed)
        try:
            return _run(spec, job, build(spec), Path(folder))
        finally:
            atexit.unregister(job._report_unfinished)
            if job._prepared:
                job._feed.close()


@contextlib.contextmanager
def _job(spec: Spec) -> Iterator[OneProcess]:
    """Make a job that starts and ends fast: few slots, a master with a short tick, files in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shoal.master.service, "TICK_SECONDS", 0.003)
        patch.setattr(shoal.master.handlers.servers, "PROVIDE_AGAIN_SECONDS", 0.02)
        patch.setattr(shoal.master.state.job.MasterSettings, "slots", property(lambda _: 4))
        patch.setattr(os, "fsync", lambda _: None)
        memory = Path("/dev/shm")
        if os.access(memory, os.W_OK):
            patch.setattr(tempfile, "tempdir", str(memory))
        made = OneProcess(patch, servers=spec.servers, epochs=spec.epochs, seed=spec.seed)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread for torch, as a trainer of a job does, and switch threads often, as most of them only wait."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        sys.setswitchinterval(interval)


def run_together(spec: Spec) -> tuple[Result, Any]:
    """Run the script in a job with one trainer; return its result and the job's account of samples."""
    with _quiet(), _job(spec) as job, tempfile.TemporaryDirectory() as folder:
        result = _run(spec, job.join(), build(spec), Path(folder))
        outcome = job.records.outcome
        return result, outcome.account.samples if outcome is not None else None


def run_two(spec: Spec) -> tuple[list[Result], Any]:
    """Run the script in a job with two trainers and a model that counts samples.

    The DataLoader has no workers: both trainers are threads of one process here, and a worker that is forked while the other
    trainer computes may wait forever for a lock of torch's that was held at the fork.
    """
    spec = replace(spec, data=replace(spec.data, workers=0))
    results: list[Result | BaseException | None] = [None, None]
    with _quiet(), _job(spec) as job, tempfile.TemporaryDirectory() as folder:
        built = [build(spec, counting=True) for _ in results]
        trainers = [job.join() for _ in results]

        def run(place: int) -> None:
            try:
                results[place] = _run(spec, trainers[place], built[place], Path(folder))
            except BaseException as error:
                results[place] = error
            finally:
                trainers[place]._leave()

        threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        assert not any(thread.is_alive() for thread in threads), "a trainer did not end"
        outcome = job.records.outcome
        return [r for r in results if isinstance(r, Result)], outcome.account.samples if outcome is not None else None
