"""A small model with a sparse table and BatchNorm, for comparison with a plain loop. Run as a training script."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer

SAMPLES, ROWS = 400, 50

OPTIMIZERS = {
    "sgd": lambda dense, sparse: [
        torch.optim.SGD(dense, lr=0.05, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD(sparse, lr=0.1),
    ],
    "adam": lambda dense, sparse: [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam(sparse, lr=0.01)],
    "adagrad": lambda dense, sparse: [
        torch.optim.Adagrad(dense, lr=0.05, lr_decay=0.01),
        torch.optim.Adagrad(sparse, lr=0.1),
    ],
}


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    rows = torch.randint(0, ROWS, (SAMPLES, 3), generator=generator)
    numbers = torch.randn(SAMPLES, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    return TensorDataset(rows, numbers, targets)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(ROWS, 4, sparse=True)
        self.first = nn.Linear(17, 9)
        self.norm = nn.BatchNorm1d(9)
        self.last = nn.Linear(9, 1)
        self.double()

    def forward(self, rows, numbers):
        seen = torch.cat([self.table(rows).flatten(1), numbers], dim=1)
        return self.last(torch.tanh(self.norm(self.first(seen))))


def optimizers(model: Model) -> list[torch.optim.Optimizer]:
    dense = [parameter for name, parameter in model.named_parameters() if not name.startswith("table")]
    return OPTIMIZERS[os.environ["PARITY"]](dense, [model.table.weight])


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + step / 50))


def loss_of(model, batch):
    rows, numbers, targets = batch
    return ((model(rows, numbers) - targets) ** 2).mean()


def main():
    job = trainer.join(epochs=2, seed=3)
    model = Model()
    made = optimizers(model)
    loader = DataLoader(data(), batch_size=4, shuffle=True)
    model, shared, loader = job.prepare(model, made, loader, scheduler=scheduler(made[0]))
    for _ in job.epochs():
        for batch in loader:
            loss = loss_of(model, batch)
            for optimizer in shared:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in shared[0].param_groups for p in g["params"]], 1.0)
            for optimizer in shared:
                optimizer.step()
            job.log(loss=loss)
    job.save("parity.safetensors")


if __name__ == "__main__":
    main()
