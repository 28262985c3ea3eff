"""Sparse tables: the rows that a batch fetches, the gradients that it pushes, and the table in the model's file."""

from __future__ import annotations

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from shoal.tensors.table_rows import first_values
from shoal.trainer.data.dataset import describe_data
from shoal.trainer.engine.sparse_tables import Tables, data_of, rows_of
from shoal.trainer.refusal import Refused
from shoal.trainer.script.description import TableModule, describe
from tests.trainer.one_process import OneProcess
from tests.trainer.toy import order_of, places

ROWS, DIM, EPOCHS, SEED, PADDING = 30, 3, 2, 5, 4


class Recorder:
    """The tables of modules, and a record of the rows that were fetched."""

    def __init__(self, *modules: nn.Module) -> None:
        self.requested: list[tuple[int, list[int]]] = []
        found = [TableModule(index, f"t{index}.weight", module) for index, module in enumerate(modules)]
        self.tables = Tables(found, self.fetch)

    def fetch(self, expected):
        self.requested += [(table, ids.tolist()) for table, ids in expected]
        return [ids.reshape(-1, 1) * 10.0 + torch.zeros(1, DIM) for _, ids in expected]


def table(kind=nn.Embedding, **options):
    return kind(ROWS, DIM, sparse=True, **options)


def test_each_row_is_fetched_once_per_batch():
    module = table()
    recorder = Recorder(module)
    before = data_of(module.weight).clone()
    assert module(torch.tensor([[7, 2], [2, 9]]))[0].tolist() == [[70.0] * DIM, [20.0] * DIM]
    module(torch.tensor([9, 3]))
    module(input=torch.tensor([3, 7], dtype=torch.int32))
    assert recorder.requested == [(0, [2, 7, 9]), (0, [3])]
    others = torch.ones(ROWS, dtype=torch.bool)
    others[[2, 3, 7, 9]] = False
    assert torch.equal(data_of(module.weight)[others], before[others])
    recorder.tables.new_batch()
    module(torch.tensor([9]))
    assert recorder.requested[2:] == [(0, [9])]


def test_a_bag_brings_the_rows_of_its_flat_input_and_each_table_its_own():
    bag, other = table(nn.EmbeddingBag, mode="sum", padding_idx=PADDING), table()
    recorder = Recorder(bag, other)
    weights = torch.tensor([1.0, 2.0, 1.0, 5.0])
    found = bag(torch.tensor([6, 1, 6, PADDING]), torch.tensor([0, 2]), per_sample_weights=weights)
    assert found[:, 0].tolist() == [60.0 + 2 * 10.0, 60.0]
    other(torch.tensor([1]))
    assert recorder.requested == [(0, [1, PADDING, 6]), (1, [1])]


@pytest.mark.parametrize("rows", [[], [ROWS], [-1, 3]])
def test_no_rows_cause_no_request_and_wrong_rows_raise_the_modules_own_error(rows):
    module = table()
    recorder = Recorder(module)
    if rows:
        with pytest.raises(IndexError):
            module(torch.tensor(rows))
    else:
        module(torch.tensor(rows, dtype=torch.int64))
    assert recorder.requested == []


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
    """Two lookups in one table; a bag with offsets and weights, sometimes empty; and a table that not every batch uses."""

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
    """Make a batch: an odd row in its first sample leaves out the rare table; few small rows give empty bags."""
    rows, expected = (torch.stack(part) for part in zip(*samples, strict=True))
    chosen = rows[:, 2:] % 7 > 3
    flat = rows[:, 2:][chosen]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), chosen.sum(1).cumsum(0)[:-1]])
    rare = None if rows[0, 0] % 2 else rows[:, 3]
    return (rows[:, 0], rows[:, 1], flat, offsets, flat / 10.0, rare), expected


def train(model, optimizers, batches):
    kinds = set()
    for given, expected in batches:
        kinds.add((len(given[2]) == 0, given[-1] is None))
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.mse_loss(model(*given), expected).backward()
        for optimizer in optimizers:
            optimizer.step()
    return kinds


def in_order(order, loader):
    for epoch in range(EPOCHS):
        for place in places(order):
            yield collate([loader.dataset[i] for i in order.indices(epoch, *place)])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", [torch.optim.SparseAdam, torch.optim.SGD, torch.optim.Adagrad])
def test_tables_of_all_kinds_equal_a_plain_loop_and_the_file_has_every_row(tmp_path, monkeypatch, kind):
    loader = DataLoader(numbers(), batch_size=2, shuffle=True, collate_fn=collate)
    plain, inner = made(kind)
    order = order_of(plain, inner, loader, seed=SEED)
    first = [module.weight.detach().clone() for module in (plain.words, plain.bag, plain.rare)]
    kinds = train(plain, inner, in_order(order, loader))
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
        assert torch.equal(saved[f"{name}.weight"][-5:], values[-5:]), "rows that were not changed"
    assert saved["words.weight"][PADDING].tolist() == [0.0] * DIM


def test_first_values_of_a_large_table_follow_from_seed_table_and_row_alone():
    loader = describe_data(DataLoader(numbers(), batch_size=2), batch_size=None)
    described = describe(*made(torch.optim.SGD), loader, accumulate=1, task_batches=None)
    spec = msgspec.structs.replace(described.shape.tables[1], family="normal", first=0.0, second=1.0)
    rows = torch.tensor([3, 17, 29])
    values = first_values(spec, 1, SEED, rows)
    assert torch.equal(first_values(spec, 1, SEED, rows.flip(0)), values.flip(0))
    assert torch.equal(first_values(spec, 1, SEED, rows[1:2]), values[1:2])
    for other in (first_values(spec, 0, SEED, rows), first_values(spec, 1, SEED + 1, rows)):
        assert (other != values).all()


LOOKUPS = {
    "the function": lambda module, ids: functional.embedding(ids, module.weight, sparse=True),
    "the bag's function": lambda module, ids: functional.embedding_bag(
        ids.reshape(1, -1), module.weight, mode="sum", sparse=True
    ),
    "an index": lambda module, ids: module.weight[ids],
    "index_select": lambda module, ids: torch.index_select(module.weight, 0, ids),
    "the method": lambda module, ids: module.weight.index_select(0, ids),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_lookup_function_fetches_rows(name):
    module = table()
    recorder = Recorder(module)
    found = LOOKUPS[name](module, torch.tensor([7, 2, 7]))
    assert recorder.requested == [(0, [2, 7])]
    assert found.sum().item() == DIM * (70.0 + 20.0 + 70.0)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_one_row_is_looked_up_by_its_number():
    module = table()
    recorder = Recorder(module)
    assert module.weight[5].tolist() == [50.0] * DIM
    assert recorder.requested == [(0, [5])]


WHOLE = {
    "linear": lambda m: functional.linear(torch.ones(DIM), m.weight),
    "norm": lambda m: m.weight.norm(),
    "copy_": lambda m: m.weight.detach().copy_(torch.zeros(ROWS, DIM)),
    "data": lambda m: m.weight.data,
    "a slice": lambda m: m.weight[3:7],
    "a mask": lambda m: m.weight[torch.ones(ROWS, dtype=torch.bool)],
    "a state_dict": lambda m: m.state_dict(),
    "an initialiser": lambda m: nn.init.normal_(m.weight),
    "arithmetic": lambda m: m.weight + 1,
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
def test_what_would_use_the_whole_table_is_refused_by_name_alone_and_together_alike(name, alone):
    module = table()
    Tables([TableModule(0, "words.weight", module)], None if alone else Recorder(table()).fetch)
    with pytest.raises(Refused, match=r"the sparse table words\.weight is used as a whole by") as refused:
        WHOLE[name](module)
    assert "make the embedding with sparse=False" in refused.value.reason


def test_attributes_of_a_table_need_no_rows():
    module = table()
    recorder = Recorder(module)
    weight = module.weight
    assert (weight.shape, weight.dtype, weight.device.type, weight.numel()) == (
        (ROWS, DIM),
        torch.float32,
        "cpu",
        ROWS * DIM,
    )
    assert (weight.grad, weight.requires_grad, weight.is_leaf, len(weight)) == (None, True, True, ROWS)
    assert isinstance(weight, nn.Parameter)
    assert weight in set(module.parameters())
    assert "Embedding(30, 3" in repr(module)
    assert repr(weight).endswith("the rows of a sparse table [30, 3], dtype=torch.float32")
    module.zero_grad()
    module.requires_grad_(False)
    assert recorder.requested == []


def test_the_whole_table_may_be_used_while_all_rows_are_here():
    module = table()
    recorder = Recorder(module)
    recorder.tables.whole = True
    assert module.weight.norm() > 0
    module(torch.tensor([3]))
    recorder.tables.new_batch()
    with pytest.raises(Refused, match="used as a whole"):
        module.weight.norm()
    assert recorder.requested == []


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_pretrained_table_keeps_its_values(any_job, tmp_path):
    values = torch.arange(ROWS * DIM, dtype=torch.float32).reshape(ROWS, DIM)
    model = nn.ModuleDict({"words": nn.Embedding.from_pretrained(values.clone(), freeze=False, sparse=True)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = TensorDataset(torch.arange(8) % 4)
    model, optimizer, batches = any_job.job.prepare(model, optimizer, data, batch_size=2)
    for _ in any_job.job.epochs():
        for (rows,) in batches:
            optimizer.zero_grad()
            model["words"](rows).sum().backward()
            optimizer.step()
    saved = load_file(any_job.job.save(tmp_path / "m.safetensors"))["words.weight"]
    values[:4] -= 2 * EPOCHS
    assert torch.equal(saved, values)
