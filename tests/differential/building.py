"""Builds what the script of a spec makes before ``prepare``: model, data, optimizers and schedulers, reproducibly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SubsetRandomSampler, TensorDataset

from tests.differential.spec import LENGTH, ROWS, WIDTH, Optimizer, Spec

# --- Modules ---


class Numbers(nn.Module):
    """A module that takes the numbers only, and ignores the rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        return torch.tanh(self.inner(x)) + 0.5 * x


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inner = kind(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        return self.inner(x)[0] + x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        return self.inner(x, x, x, need_weights=False)[0] + x


class Looked(nn.Module):
    """Adds the output of an embedding or a bag of embeddings."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.inner = kind(ROWS, WIDTH, **options)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        found = self.inner(rows)
        return x + (found if found.dim() == 3 else found.unsqueeze(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        return self.second(torch.tanh(self.first(x)))


class Moving(nn.Module):
    """Keeps a moving mean in a buffer: written in place, assigned anew, or not saved."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("mean", torch.zeros(WIDTH), persistent=how != "passing")
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        if self.training:
            new = x.detach().mean((0, 1))
            if self.how == "assigned":
                self.mean = 0.9 * self.mean + 0.1 * new
            else:
                self.mean.mul_(0.9).add_(0.1 * new)
        return (x - self.mean) * self.scale


class Counts(nn.Module):
    """Counts samples in an integer buffer, and uses the count in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        del rows
        if self.training:
            self.seen += len(x)
        return x / (1 + 0.01 * self.seen) + self.shift


BLOCKS = {
    "linear": lambda: Numbers(nn.Linear(WIDTH, WIDTH)),
    "convolution": lambda: Numbers(nn.Conv1d(LENGTH, LENGTH, 3, padding=1)),
    "batch norm": lambda: Numbers(nn.BatchNorm1d(LENGTH)),
    "layer norm": lambda: Numbers(nn.LayerNorm(WIDTH)),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "transformer": lambda: Numbers(nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)),
    "embedding": lambda: Looked(nn.Embedding),
    "padded embedding": lambda: Looked(nn.Embedding, padding_idx=1),
    "bag": lambda: Looked(nn.EmbeddingBag, mode="mean"),
    "tied": Tied,
    "weight norm": lambda: Numbers(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "spectral norm": lambda: Numbers(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "buffer in place": lambda: Moving("in place"),
    "buffer assigned": lambda: Moving("assigned"),
    "buffer passing": lambda: Moving("passing"),
    "counter": Counts,
}
TABLES = {
    "table": lambda: Looked(nn.Embedding, sparse=True),
    "padded table": lambda: Looked(nn.Embedding, sparse=True, padding_idx=1),
    "table bag": lambda: Looked(nn.EmbeddingBag, sparse=True, mode="sum"),
}


class Model(nn.Module):
    """A sequence of blocks, and a linear head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        kinds = BLOCKS | TABLES
        self.blocks = nn.ModuleList(kinds[block.kind]() for block in spec.blocks)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, rows)
        return self.head(x.mean(1)).squeeze(1)


class Counter(nn.Module):
    """A model, and beside it one entry per sample; each training on a sample adds 1 to its entry."""

    def __init__(self, inner: Model, samples: int) -> None:
        super().__init__()
        self.inner = inner
        self.entries = nn.Parameter(torch.zeros(samples, dtype=torch.float64))


# --- Building ---


@dataclass
class Built:
    """The objects that a script has made."""

    model: nn.Module
    core: Model
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[Any]
    loader: Any
    entries: nn.Parameter | None
    changes: list[tuple[tuple[int, str, Any], ...]]
    """For each optimizer the changes that the script makes to its options: (epoch, option, value)."""


def dataset(spec: Spec, *, samples: int | None = None, seed: int = 5) -> TensorDataset:
    """Make the dataset: index, numbers, rows, target and weight of each sample."""
    count = samples or spec.data.samples
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, LENGTH, WIDTH, generator=generator, dtype=torch.float64).to(spec.dtype)
    rows = torch.randint(0, ROWS, (count, LENGTH), generator=generator)
    y = torch.randn(count, generator=generator, dtype=torch.float64).to(spec.dtype)
    weight = torch.ones(count, dtype=spec.dtype)
    if 0 <= spec.data.poison < count and samples is None:
        weight[spec.data.poison] = math.inf
    return TensorDataset(torch.arange(count), x, rows, y, weight)


def build(spec: Spec, *, counting: bool = False) -> Built:
    """Make what the script of a spec makes before ``prepare``."""
    torch.manual_seed(spec.seed)
    core = Model(spec).to(spec.dtype)
    model: nn.Module = Counter(core, spec.data.samples) if counting else core
    pairs = _optimizers(spec, core)
    optimizers = [made for made, _ in pairs]
    schedulers = [
        made
        for one in spec.schedulers
        if one.optimizer < len(optimizers)
        for made in [scheduler(spec, one.kind, optimizers[one.optimizer])]
    ]
    entries = model.entries if isinstance(model, Counter) else None
    if entries is not None:
        optimizers.append(torch.optim.SGD([entries], lr=1.0))
    return Built(model, core, optimizers, schedulers, loader(spec), entries, [one.changes for _, one in pairs])


def _optimizers(spec: Spec, core: Model) -> list[tuple[torch.optim.Optimizer, Optimizer]]:
    dense: list[list[nn.Parameter]] = [[] for _ in spec.optimizers]
    sparse: list[nn.Parameter] = []
    for number, (block, made) in enumerate(zip(spec.blocks, core.blocks, strict=True)):
        if block.held in ("outside", "inside") or (isinstance(block.held, int) and block.held > 0):
            made.requires_grad_(False)
        if block.held in ("outside", "left"):
            continue
        (sparse if block.kind in TABLES else dense[number % len(dense)]).extend(made.parameters())
    dense[0].extend(core.head.parameters())
    made_all = []
    for number, (one, parameters) in enumerate(zip(spec.optimizers, dense, strict=True)):
        inside = sparse if number == 0 and spec.sparse_inside else []
        if parameters or inside:
            made_all.append((_optimizer(one, parameters, inside), one))
    if sparse and not spec.sparse_inside:
        made_all.append((_optimizer(spec.sparse, sparse, []), spec.sparse))
    return made_all


def _optimizer(one: Optimizer, parameters: list[nn.Parameter], inside: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate = dict(one.options).get("lr", 0.05)
    options = {name: value for name, value in one.options if name != "lr"}
    if one.groups == 2 and len(parameters) > 1:
        half = len(parameters) // 2
        groups = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": rate / 2}]
    else:
        groups = [{"params": parameters}]
    if inside:
        groups.append({"params": inside, "lr": rate / 4})
    made: torch.optim.Optimizer = getattr(torch.optim, one.kind)(groups, lr=rate, **options)
    return made


def scheduler(spec: Spec, kind: str, optimizer: torch.optim.Optimizer) -> Any:
    """Make a scheduler; one with a fixed length has the length of the job."""
    total = spec.epochs * (spec.steps if spec.interval == "step" else 1)
    return SCHEDULERS[kind](optimizer, total)


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o, _: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "multiplicative": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9 if step % 2 else 0.8),
    "step": lambda o, _: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "multi step": lambda o, _: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.5),
    "exponential": lambda o, _: lr_scheduler.ExponentialLR(o, 0.8),
    "constant": lambda o, _: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=2),
    "linear": lambda o, _: lr_scheduler.LinearLR(o, start_factor=0.5, total_iters=3),
    "polynomial": lambda o, total: lr_scheduler.PolynomialLR(o, total_iters=total),
    "cosine": lambda o, total: lr_scheduler.CosineAnnealingLR(o, T_max=total),
    "restarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    "one cycle": lambda o, total: lr_scheduler.OneCycleLR(
        o, max_lr=0.1, total_steps=max(2, total), cycle_momentum=_cycles(o)
    ),
    "cyclic": lambda o, _: lr_scheduler.CyclicLR(
        o, base_lr=0.01, max_lr=0.1, step_size_up=2, cycle_momentum=_cycles(o)
    ),
    "plateau": lambda o, _: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.1),
    "sequential": lambda o, _: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, start_factor=0.5, total_iters=2), lr_scheduler.ExponentialLR(o, 0.8)], [2]
    ),
    "chained": lambda o, _: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.5, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], o
    ),
}


def _cycles(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a scheduler can cycle the momentum, too."""
    return all(group.get("momentum", 0) > 0 or "betas" in group for group in optimizer.param_groups)


class Backwards(Sampler[int]):
    """A custom sampler: backwards, from another start in each epoch, and of all or only some of the samples."""

    def __init__(self, samples: int, count: int) -> None:
        self.samples, self.count = samples, count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter([(self.epoch - place) % self.samples for place in range(self.count)])

    def __len__(self) -> int:
        return self.count


def loader(spec: Spec) -> Any:
    """Make the script's DataLoader."""
    data, samples = spec.data, dataset(spec)
    generator = torch.Generator().manual_seed(1)
    common: dict[str, Any] = {"num_workers": data.workers}
    if data.sampler.startswith("batches"):
        inner = Backwards(data.samples, data.samples)
        return DataLoader(samples, batch_sampler=BatchSampler(inner, data.batch_size, data.drop_last), **common)
    sampler: Any = {
        "": None,
        "own": Backwards(data.samples, data.samples),
        "own part": Backwards(data.samples, data.samples - 1),
        "subset part": SubsetRandomSampler(range(data.samples - 1), generator=generator),
        "replacement": RandomSampler(samples, replacement=True, generator=generator),
    }[data.sampler]
    return DataLoader(
        samples,
        batch_size=data.batch_size,
        drop_last=data.drop_last,
        sampler=sampler,
        shuffle=data.shuffle if sampler is None else None,
        **common,
    )
