"""Changes to the model's values in scripts, before and after ``prepare``."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_sparse_table_begins_with_its_pretrained_values(run):
    result = run("""
        vectors = torch.arange(SAMPLES * 2, dtype=torch.float32).reshape(SAMPLES, 2)

        def pretrained():
            return nn.Embedding.from_pretrained(vectors.clone(), freeze=False, sparse=True)

        job, model, optimizer, loader = begin(pretrained, optimizer=lambda m: sgd(m, lr=0.0))
        for epoch in job.epochs():
            for i in loader:
                rows = model(i)
                assert torch.equal(rows.detach(), vectors[i])
                optimizer.zero_grad(); rows.sum().backward(); optimizer.step()
        job.save("out.safetensors")
    """)
    assert result.model()["weight"].flatten().tolist() == list(range(128))


def test_loading_weights_after_prepare_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        model.load_state_dict({"w": torch.full((SAMPLES,), 100.0)})
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter w was written by the script after prepare",
        "before prepare",
    )


MEANS = """
    class Averaging(Counter):
        def __init__(self):
            super().__init__()
            self.register_buffer("assigned", torch.zeros(()))
            self.register_buffer("in_place", torch.zeros(()))

        def forward(self, i):
            self.assigned = 0.9 * self.assigned + 0.1 * 5.0
            self.in_place.mul_(0.9).add_(0.1 * 5.0)
            return super().forward(i)

    job, model, optimizer, loader = begin(Averaging, epochs=3)
    print("began with", float(model.assigned), flush=True)
"""


def test_a_buffer_that_is_assigned_anew_counts_as_one_that_is_written_in_place(run):
    result = run(
        MEANS
        + """
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
    job.save("out.safetensors")
    """
    )
    model = result.model()
    assert model["assigned"].item() == pytest.approx(model["in_place"].item(), rel=1e-5)
    assert 4.0 < model["assigned"].item() <= 5.0
    assert result.counts() == [3.0]


def test_a_buffer_that_is_assigned_anew_is_restored_after_a_kill(run_in_job):
    result = run_in_job(
        MEANS
        + """
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
        if epoch == 1 and not os.path.exists("killed"):
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    job.save("out.safetensors")
    """,
        trainers=1,
    )
    first, second = (float(value) for value in result.lines("began with"))
    assert first == 0.0
    assert 4.0 < second <= 5.0
    assert result.counts() == [3.0]


def test_frozen_layers_and_buffers_are_the_first_trainers(run):
    result = run("""
        class Features(Counter):
            def __init__(self):
                super().__init__()
                self.features = nn.Linear(3, 3, bias=False).requires_grad_(False)
                self.register_buffer("noise", torch.randn(3), persistent=False)

        torch.manual_seed(os.getpid())  # no two processes begin alike
        model = Features()
        optimizer = sgd(model)
        job = trainer.join(epochs=2, seed=7)
        model, optimizer, loader = job.prepare(model, optimizer, data())
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        print("has", model.features.weight.flatten().tolist(), model.noise.tolist(), flush=True)
        job.save("out.safetensors")
    """)
    assert len(set(result.lines("has"))) == 1
    assert result.counts() == [2.0]


def test_what_is_unfrozen_in_the_loop_trains_from_then_on(run):
    result = run("""
        def frozen():
            model = Pair()
            model.body.requires_grad_(False)
            return model

        job, model, optimizer, loader = begin(frozen, epochs=4)
        for epoch in job.epochs():
            model.body.requires_grad_(epoch >= 2)
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert (result.counts(entry="body.w"), result.counts(entry="head.w")) == ([2.0], [4.0])


def test_parameters_frozen_in_the_loop_do_not_change_from_then_on(run):
    result = run("""
        job, model, optimizer, loader = begin(Pair, epochs=3)
        for epoch in job.epochs():
            model.body.requires_grad_(epoch < 1)
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert (result.counts(entry="body.w"), result.counts(entry="head.w")) == ([1.0], [3.0])


def test_a_moving_average_of_the_weights_is_saved_next_to_the_model(run):
    result = run("""
        job, model, optimizer, loader = begin(ema=0.9)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    # The sum over the entries after each of the 32 steps; two servers may apply two trainers' batches in different orders.
    average = total = 4.0
    for _ in range(31):
        total += 4.0
        average = 0.9 * average + 0.1 * total
    assert result.counts() == [2.0]
    assert result.model("out-ema.safetensors")["w"].sum().item() == pytest.approx(
        average, rel=1e-4 if result.outcome is None else 0.02
    )


def test_an_averaged_model_of_the_script_is_refused_with_prepares_ema(refused):
    refused(
        """
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        job, model, optimizer, loader = begin()
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
                average.update_parameters(model)
        job.save("out.safetensors")
        """,
        "AveragedModel",
        "ema=",
    )


def test_clipping_weights_by_hand_is_refused_with_prepares_clamp(refused):
    refused(
        """
        job, model, optimizer, loader = begin(lambda: nn.ModuleList([Counter(), Counter(), Counter()]))
        for epoch in job.epochs():
            for i in loader:
                loss = sum(part(i) for part in model)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                for p in model.parameters():
                    p.data.clamp_(-0.5, 0.5)
        job.save("out.safetensors")
        """,
        ".w was written by the script after prepare",
        "clamp={...}",
    )


def test_prepares_clamp_keeps_the_bounds(run):
    result = run("""
        job, model, optimizer, loader = begin(epochs=3, clamp={"w": (-0.5, 1.5)})
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [1.5]


def test_initialising_a_head_between_epochs_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(Pair)
        for epoch in job.epochs():
            if epoch == 1:
                nn.init.zeros_(model.head.w)
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter head.w was written by the script after prepare",
        "initialise (load_state_dict, copy_) before prepare",
    )


def test_a_new_layer_in_the_place_of_a_trained_one_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(Pair)
        model.head = Counter()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter head.w was replaced or removed after prepare",
        "change the model before prepare",
    )


def test_a_new_layer_in_the_middle_of_an_epoch_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(Pair)
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                if n == 1:
                    model.head = Counter()
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter head.w was replaced or removed after prepare",
    )


@pytest.mark.parametrize("change", ["half()", "double()", "to(torch.bfloat16)"])
def test_another_dtype_after_prepare_is_refused(refused, change):
    refused(
        f"""
        job, model, optimizer, loader = begin()
        model.{change}
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "parameter w was moved or got another dtype after prepare",
    )


def test_a_parametrization_before_prepare_trains(run):
    result = run("""
        def normed():
            model = nn.ModuleDict({"counter": Counter(), "layer": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))})
            return model

        job, model, optimizer, loader = begin(normed, optimizer=lambda m: sgd(m))
        for epoch in job.epochs():
            for i in loader:
                loss = model["counter"](i) + model["layer"](i.float()).square().mean() * 1e-6
                optimizer.zero_grad(); loss.backward(); optimizer.step()
        job.save("out.safetensors")
    """)
    assert result.counts(entry="counter.w") == [2.0]
    assert "layer.parametrizations.weight.original" in result.model()


def test_a_parametrization_after_prepare_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(lambda: nn.ModuleDict({"counter": Counter(), "layer": nn.Linear(4, 4)}))
        nn.utils.parametrizations.spectral_norm(model["layer"])
        for epoch in job.epochs():
            for i in loader:
                loss = model["counter"](i) + model["layer"](i.float()).square().mean() * 1e-6
                optimizer.zero_grad(); loss.backward(); optimizer.step()
        job.save("out.safetensors")
        """,
        "parameter layer.weight was replaced or removed after prepare",
        "change the model before prepare",
    )


def test_tied_weights_are_one_parameter_with_both_names(run):
    result = run("""
        def tied():
            model = Pair()
            model.head.w = model.body.w
            return model

        job, model, optimizer, loader = begin(tied)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts(entry="body.w") == result.counts(entry="head.w") == [4.0]


TARGET = """
    class Momentum(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.target = Counter(), Counter()
            self.target.requires_grad_(False)

        def forward(self, i):
            return self.online(i)

    job, model, optimizer, loader = begin(Momentum, optimizer=lambda m: sgd(m.online))
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
            with torch.no_grad():
                for slow, fast in zip(model.target.parameters(), model.online.parameters()):
                    WRITE
    job.save("out.safetensors")
"""


@pytest.mark.parametrize(
    "write", ["slow.mul_(0.9).add_(fast, alpha=0.1)", "slow.data = 0.9 * slow.data + 0.1 * fast.data"]
)
def test_a_momentum_encoder_of_the_script_is_refused_with_prepares_ema(refused, write):
    refused(TARGET.replace("WRITE", write), "target.w was ", "after prepare")


def test_saving_the_state_dict_in_the_loop_has_the_steps_so_far(run_alone):
    result = run_alone("""
        job, model, optimizer, loader = begin(epochs=1)
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                train(model, optimizer, i)
                torch.save(model.state_dict(), "last.pt")
                assert torch.load("last.pt")["w"].sum() == 4 * (n + 1)
        job.save("out.safetensors")
    """)
    assert result.counts() == [1.0]


def test_the_script_sees_its_own_step_at_once(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                before = model.w.detach()[i].clone()
                train(model, optimizer, i)
                assert torch.equal(model.w.detach()[i], before + 1)
                torch.save(model.state_dict(), f"last-{os.getpid()}.pt")
                assert torch.equal(torch.load(f"last-{os.getpid()}.pt")["w"][i], before + 1)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_the_state_dict_of_a_sparse_table_in_the_loop_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(lambda: nn.Embedding(SAMPLES, 2, sparse=True))
        for epoch in job.epochs():
            for i in loader:
                loss = model(i).sum()
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                torch.save(model.state_dict(), "last.pt")
        job.save("out.safetensors")
        """,
        "the sparse table weight is used as a whole",
        "sparse=False",
    )


def test_data_parallel_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin(lambda: nn.DataParallel(Counter()))
        """,
        "DataParallel",
        "model.module",
    )


def test_checkpointed_activations_train(run):
    result = run("""
        from torch.utils.checkpoint import checkpoint

        job, model, optimizer, loader = begin(Pair)
        for epoch in job.epochs():
            for i in loader:
                loss = checkpoint(model.body, i, use_reentrant=False) + checkpoint(model.head, i, use_reentrant=False)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
        job.save("out.safetensors")
    """)
    assert result.counts(entry="body.w") == result.counts(entry="head.w") == [2.0]


def test_a_recurrent_network_over_packed_sequences_trains(run):
    result = run("""
        from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

        class Sequences(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.counter = nn.LSTM(1, 3, batch_first=True), Counter()

            def forward(self, i):
                packed = pack_sequence([torch.ones(int(n) % 5 + 1, 1) for n in i], enforce_sorted=False)
                out, _ = self.lstm(packed)
                return self.counter(i) + pad_packed_sequence(out, batch_first=True)[0].mean()

        job, model, optimizer, loader = begin(Sequences)
        first = {name: value.detach().clone() for name, value in model.named_parameters()}
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        assert all(not torch.equal(first[name], value) for name, value in model.named_parameters())
        job.save("out.safetensors")
    """)
    assert result.counts(entry="counter.w") == [2.0]
