"""Sparse tables: which rows a batch brings, what it pushes, and what the model's file has in the end."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal.trainer.describe import TableModule, describe
from shoal.trainer.embeddings import TableHooks, rows_of
from shoal.trainer.order import Order
from shoal.wire.rows import first_values
from tests.trainer.one_process import OneProcess

ROWS, DIM, EPOCHS, SEED, PADDING = 30, 3, 2, 5, 4


class Recorder:
    """Hooks on modules, and the rows that they asked for."""

    def __init__(self, *modules: nn.Module) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.hooks = TableHooks([TableModule(index, module) for index, module in enumerate(modules)], self.fetch)

    def fetch(self, wanted):
        self.asked += [(table, ids.tolist()) for table, ids in wanted]
        return [ids.reshape(-1, 1) * 10.0 + torch.zeros(1, DIM) for _, ids in wanted]


def table(kind=nn.Embedding, **options):
    return kind(ROWS, DIM, sparse=True, **options)


def test_each_row_comes_once_a_batch_and_anew_in_the_next_one():
    module = table()
    recorder = Recorder(module)
    before = module.weight.detach().clone()
    assert module(torch.tensor([[7, 2], [2, 9]]))[0].tolist() == [[70.0] * DIM, [20.0] * DIM]
    module(torch.tensor([9, 3]))
    module(input=torch.tensor([3, 7], dtype=torch.int32))
    assert recorder.asked == [(0, [2, 7, 9]), (0, [3])]
    others = torch.ones(ROWS, dtype=torch.bool)
    others[[2, 3, 7, 9]] = False
    assert torch.equal(module.weight[others], before[others])
    recorder.hooks.new_batch()
    module(torch.tensor([9]))
    assert recorder.asked[2:] == [(0, [9])]


def test_a_bag_brings_the_rows_of_its_flat_input_and_each_table_its_own():
    bag, other = table(nn.EmbeddingBag, mode="sum", padding_idx=PADDING), table()
    recorder = Recorder(bag, other)
    weights = torch.tensor([1.0, 2.0, 1.0, 5.0])
    found = bag(torch.tensor([6, 1, 6, PADDING]), torch.tensor([0, 2]), per_sample_weights=weights)
    assert found[:, 0].tolist() == [60.0 + 2 * 10.0, 60.0]
    other(torch.tensor([1]))
    assert recorder.asked == [(0, [1, PADDING, 6]), (1, [1])]


@pytest.mark.parametrize("rows", [[], [ROWS], [-1, 3]])
def test_nothing_is_asked_for_no_rows_and_of_wrong_ones_the_module_itself_complains(rows):
    module = table()
    recorder = Recorder(module)
    if rows:
        with pytest.raises(IndexError):
            module(torch.tensor(rows))
    else:
        module(torch.tensor(rows, dtype=torch.int64))
    assert recorder.asked == []


def test_a_gradient_has_each_row_once():
    module = table()
    module(torch.tensor([8, 2, 8])).sum().backward()
    ids, values = rows_of(module.weight.grad)
    assert ids.tolist() == [2, 8]
    assert values[:, 0].tolist() == [1.0, 2.0]
    ids, values = rows_of(module.weight.grad.to_dense())
    assert ids.tolist() == [2, 8]
    assert values[:, 0].tolist() == [1.0, 2.0]


class Model(nn.Module):
    """Two lookups in one table; a bag with offsets and weights, sometimes empty; a table that not every batch uses."""

    def __init__(self):
        super().__init__()
        self.words = table(padding_idx=PADDING)
        self.bag = table(nn.EmbeddingBag, mode="sum")
        self.rare = table()
        self.head = nn.Linear(4 * DIM, 1)

    def forward(self, left, right, flat, offsets, weights, rare):
        parts = [self.words(left), self.words(right), self.bag(flat, offsets, per_sample_weights=weights)]
        parts.append(self.rare(rare) if rare is not None else torch.zeros(len(left), DIM))
        return self.head(torch.cat(parts, dim=1))


def made(kind):
    torch.manual_seed(1)
    model = Model()
    sparse = [model.words.weight, model.bag.weight, model.rare.weight]
    return model, [torch.optim.Adam(model.head.parameters(), lr=0.02), kind(sparse, lr=0.05)]


def numbers():
    generator = torch.Generator().manual_seed(9)
    rows = torch.randint(0, ROWS - 5, (36, 4), generator=generator)
    return TensorDataset(rows, torch.randn(36, 1, generator=generator))


def collate(samples):
    """A batch whose first sample has an odd row uses no rare table; one with few small rows has empty bags."""
    rows, wanted = (torch.stack(part) for part in zip(*samples, strict=True))
    chosen = rows[:, 2:] % 7 > 3
    flat = rows[:, 2:][chosen]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), chosen.sum(1).cumsum(0)[:-1]])
    rare = None if rows[0, 0] % 2 else rows[:, 3]
    return (rows[:, 0], rows[:, 1], flat, offsets, flat / 10.0, rare), wanted


def train(model, optimizers, batches):
    kinds = set()
    for given, wanted in batches:
        kinds.add((len(given[2]) == 0, given[-1] is None))
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.mse_loss(model(*given), wanted).backward()
        for optimizer in optimizers:
            optimizer.step()
    return kinds


def in_order(shape, loader):
    order = Order(shape, SEED)
    for epoch in range(EPOCHS):
        for task in range(order.plan.tasks):
            for batch in range(order.plan.batches_in(task)):
                yield collate([loader.dataset[i] for i in order.indices(epoch, task, batch)])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_tables_of_all_kinds_equal_a_plain_loop_and_the_file_has_every_row(tmp_path, monkeypatch, kind):
    loader = DataLoader(numbers(), batch_size=2, shuffle=True, collate_fn=collate)
    plain, inner = made(kind)
    shape = describe(plain, inner, loader, accumulate=1, task_batches=None).shape
    first = [first_values(described, i, SEED, torch.arange(ROWS)) for i, described in enumerate(shape.tables)]
    for module, values in zip((plain.words, plain.bag, plain.rare), first, strict=True):
        module.weight.data.copy_(values)
    kinds = train(plain, inner, in_order(shape, loader))
    assert {empty for empty, _ in kinds} == {unused for _, unused in kinds} == {True, False}

    one = OneProcess(monkeypatch, servers=2, epochs=EPOCHS, seed=SEED)
    try:
        job = one.join()
        model, optimizers, batches = job.prepare(*made(kind), loader)
        for _ in job.epochs():
            train(model, optimizers, batches)
        saved = load_file(job.save(tmp_path / "model.safetensors"))
    finally:
        one.close()
    assert one.records.outcome.account.samples.counted == EPOCHS * len(numbers())
    assert saved.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)
    for name, values in zip(("words", "bag", "rare"), first, strict=True):
        assert torch.equal(saved[f"{name}.weight"][-5:], values[-5:]), "rows that nobody touched"
    assert saved["words.weight"][PADDING].tolist() == [0.0] * DIM


def test_first_values_follow_from_seed_table_and_row_alone():
    described = describe(*made(torch.optim.SGD), DataLoader(numbers(), batch_size=2), accumulate=1, task_batches=None)
    spec = described.shape.tables[1]
    rows = torch.tensor([3, 17, 29])
    values = first_values(spec, 1, SEED, rows)
    assert torch.equal(first_values(spec, 1, SEED, rows.flip(0)), values.flip(0))
    assert torch.equal(first_values(spec, 1, SEED, rows[1:2]), values[1:2])
    for other in (first_values(spec, 0, SEED, rows), first_values(spec, 1, SEED + 1, rows)):
        assert (other != values).all()
