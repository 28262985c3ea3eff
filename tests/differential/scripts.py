"""The loop of a spec's script: the same lines in plain PyTorch and with a job."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tests.differential.building import Built, Counter, dataset
from tests.differential.mistakes import MISTAKES
from tests.differential.spec import Spec

CLAMP = {"*head.weight": (-0.2, 0.3)}
MAX_NORM = {"*head.weight": 0.4}


class Host(Protocol):
    """The interface through which a script runs: ``Plain``, or a job."""

    def prepare(self, model: nn.Module, optimizer: Any, loader: Any, **options: Any) -> tuple[Any, Any, Any]: ...
    def epochs(self) -> Any: ...
    def evaluate(self, score: Any) -> Any: ...
    def save(self, path: Any) -> str: ...
    def log(self, **values: Any) -> None: ...
    def stop(self, reason: str) -> None: ...


@dataclass
class Found:
    """What a script observed and wrote."""

    rates: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    hooks: list[int] = field(default_factory=lambda: [0, 0])
    files: list[str] = field(default_factory=list)


@dataclass
class Script:
    """A script during its run; mistakes access its attributes."""

    spec: Spec
    host: Any
    built: Built
    folder: Path
    plain: bool
    found: Found = field(default_factory=Found)
    model: Any = None
    optimizers: list[Any] = field(default_factory=list)
    batches: Any = None
    epoch: int = 0
    number: int = 0
    batch: Any = None

    def slip(self, place: str) -> None:
        """Make the spec's mistake, if it belongs to this place."""
        if self.spec.mistake:
            mistake = MISTAKES[self.spec.mistake]
            if mistake.place == place:
                mistake.act(self)

    def run(self) -> Found:
        """Run the script, from ``prepare`` to its last line."""
        spec, host = self.spec, self.host
        self.slip("beginning")
        if spec.hooks:
            self._hook()
        self._prepare()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3, enabled=spec.amp)
        self.slip("prepared")
        best = math.inf
        for epoch in host.epochs():
            self.epoch = epoch
            self._thaw()
            self._change()
            self.slip("epoch begins")
            self._pass()
            if spec.interval == "epoch" and self._schedules:
                for scheduler in self._counting:
                    scheduler.step()
            self.slip("epoch ends")
            score = math.inf
            for _ in range(spec.evaluations):
                score = self.evaluate()
            if spec.saves == "epoch" or (spec.saves == "best" and score < best):
                self._save(f"epoch{epoch}.safetensors")
            best = min(best, score)
            for scheduler in self._measuring:
                scheduler.step(score)
            if spec.stop == ("epoch", epoch):
                host.stop("enough")
        self.slip("end")
        self._save("end.safetensors")
        return self.found

    @property
    def _schedules(self) -> bool:
        return self.plain or self.spec.script_schedules

    def _prepare(self) -> None:
        spec, built = self.spec, self.built
        given: Any = built.optimizers
        options: dict[str, Any] = {}
        if built.schedulers and spec.mistake != "scheduler not given":
            options["scheduler"] = built.schedulers if len(built.schedulers) > 1 else built.schedulers[0]
            options["scheduler_interval"] = spec.interval
        if spec.task_batches:
            options["task_batches"] = spec.task_batches
        if spec.accumulate > 1:
            options["accumulate"] = spec.accumulate
        if spec.ema:
            options["ema"] = spec.ema
        if spec.clamp:
            options |= {"clamp": CLAMP, "max_norm": MAX_NORM}
        if len(given) == 1:
            self.model, optimizer, self.batches = self.host.prepare(built.model, given[0], built.loader, **options)
            self.optimizers = [optimizer]
        else:
            self.model, self.optimizers, self.batches = self.host.prepare(built.model, given, built.loader, **options)

    def _hook(self) -> None:
        counts = self.found.hooks

        def before(*_: Any) -> None:
            counts[0] += 1

        def behind(*_: Any) -> None:
            counts[1] += 1

        self.built.optimizers[0].register_step_pre_hook(before)
        self.built.optimizers[0].register_step_post_hook(behind)

    def _thaw(self) -> None:
        for block, made in zip(self.spec.blocks, self.built.core.blocks, strict=True):
            if isinstance(block.held, int) and abs(block.held) == self.epoch:
                made.requires_grad_(block.held > 0)

    def _change(self) -> None:
        # The counter's optimizer, if there is one, is the last one and has no changes.
        for optimizer, changes in zip(self.optimizers, self.built.changes, strict=False):
            for epoch, name, value in changes:
                if epoch == self.epoch:
                    for group in optimizer.param_groups:
                        group[name] = value

    # --- A pass over the loader ---

    def _pass(self) -> None:
        for number, batch in enumerate(self.batches):
            self.number, self.batch = number, batch
            self.found.rates.append([group["lr"] for o in self.optimizers for group in o.param_groups])
            self.slip("batch")
            self._train()
            self._schedule()
            self.slip("batch ends")
            if self.epoch == 0 and number == 1:
                self._middle()

    def _train(self) -> None:
        spec, weight = self.spec, self.batch[4]
        if spec.zero != "after" and self._begins:
            self._clear()
        if spec.skip == "input" and bool(weight.isinf().any()):
            return
        active = self._active()
        if spec.closure:
            loss = active[0].step(self._closure)
            for optimizer in active[1:]:
                optimizer.step()
        else:
            loss = self.loss()
            if spec.skip == "loss" and not bool(loss.isfinite()):
                return
            self.scaler.scale(loss).backward()
            if spec.skip == "gradients" and not self._finite():
                self._clear()
                return
            self.slip("backward")
            self._step(active)
        if spec.zero == "after" and self._closes:
            self._clear()
        self.found.losses.append(float(loss.detach()))
        self.host.log(loss=loss)

    @property
    def _closes(self) -> bool:
        return bool(self.host.closes if self.plain else self.optimizers[0].closes)

    @property
    def _begins(self) -> bool:
        return bool(self.host.begins) if self.plain else True

    def _active(self) -> list[Any]:
        own = [o for o in self.optimizers if self._is_core(o)]
        if self.spec.alternate and len(own) > 1:
            own = [own[self.number % len(own)]]
        return [*own, *(o for o in self.optimizers if not self._is_core(o))]

    def _is_core(self, optimizer: Any) -> bool:
        return self.built.entries is None or optimizer is not self.built.optimizers[-1]

    def _clear(self) -> None:
        if self.spec.zero == "model":
            self.model.zero_grad(set_to_none=self.spec.to_none)
        else:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=self.spec.to_none)

    def _closure(self) -> Tensor:
        self._clear()
        loss = self.loss()
        loss.backward()
        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.spec.amp else nullcontext()

    def loss(self) -> Tensor:
        """Return the loss of the current batch."""
        index, x, rows, y, weight = self.batch
        core = self.model.inner if isinstance(self.model, Counter) else self.model
        with self._autocast():
            out = core(x, rows)
        loss = ((out.to(y.dtype) - y).square() * weight).mean() / self.spec.accumulate
        if self.built.entries is not None:
            loss = loss - self.built.entries[index].sum()
        return loss

    def _dense_gradients(self) -> list[nn.Parameter]:
        return [p for p in self.built.core.parameters() if p.grad is not None and not p.grad.is_sparse]

    def _finite(self) -> bool:
        return all(bool(p.grad.isfinite().all()) for p in self._dense_gradients())  # type: ignore[union-attr]

    def _step(self, active: list[Any]) -> None:
        spec = self.spec
        if not self._closes:
            if not self.plain and not spec.amp:
                for optimizer in active:
                    optimizer.step()
            return
        if spec.amp:
            active = [o for o in active if any(p.grad is not None for g in o.param_groups for p in g["params"])]
            for optimizer in active:
                self.scaler.unscale_(optimizer)
        if spec.clip == "norm":
            nn.utils.clip_grad_norm_(self._dense_gradients(), 0.1)
        elif spec.clip == "value":
            nn.utils.clip_grad_value_(self._dense_gradients(), 0.05)
        for optimizer in active:
            self.scaler.step(optimizer)
            self.slip("stepped")
        if active:
            self.scaler.update()
        if spec.amp:
            self.found.scales.append(self.scaler.get_scale())

    def _schedule(self) -> None:
        if self.spec.interval != "step" or not self._schedules or (self.plain and not self._closes):
            return
        for scheduler in self._counting:
            scheduler.step()

    @property
    def _counting(self) -> list[Any]:
        return [s for s in self.built.schedulers if not isinstance(s, ReduceLROnPlateau)]

    @property
    def _measuring(self) -> list[Any]:
        return [s for s in self.built.schedulers if isinstance(s, ReduceLROnPlateau)]

    def _middle(self) -> None:
        if self.spec.middle == "evaluate":
            self.evaluate()
        elif self.spec.middle == "save":
            self._save("middle.safetensors")
        if self.spec.stop == ("batch", 1):
            self.host.stop("enough")

    # --- Scores and files ---

    def evaluate(self) -> float:
        """Compute the model's score on samples that are not trained on."""
        _, x, rows, y, _ = dataset(self.spec, samples=4, seed=6).tensors

        def score(model: Any) -> dict[str, float]:
            assert not torch.is_grad_enabled()
            core = model.inner if isinstance(model, Counter) else model
            assert not core.training
            return {"loss": float((core(x, rows) - y).square().mean()), "samples": len(x)}

        scored = self.host.evaluate(score)
        self.found.scores.append(scored)
        return float(scored["loss"])

    def _save(self, name: str) -> None:
        self.host.save(self.folder / name)
        self.found.files.append(name)
