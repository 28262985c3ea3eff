"""Data in scripts: datasets, workers, samplers, and passes over the loader."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_file_that_is_opened_lazily_is_opened_in_each_worker(run):
    result = run("""
        import struct

        RECORD = 4096

        class Records(Numbers):
            file = None

            def __getitem__(self, index):
                if self.file is None:
                    self.file = open("records", "rb", buffering=0)
                    self.opener = os.getpid()
                assert self.opener == os.getpid()
                self.file.seek(index * RECORD)
                head, body = self.file.read(8), self.file.read(RECORD - 8)
                return torch.tensor([index, *struct.unpack("<q", head), *struct.unpack("<q", body[-8:])])

        part = Path(f"records-{os.getpid()}")
        part.write_bytes(b"".join(struct.pack("<q", index) * (RECORD // 8) for index in range(SAMPLES)))
        part.rename("records")
        dataset = Records()
        job, model, optimizer, loader = begin(loader=data(dataset, batch_size=2, num_workers=2))
        for epoch in job.epochs():
            for batch in loader:
                assert (batch[:, :1] == batch[:, 1:]).all()
                train(model, optimizer, batch[:, 1])
        assert dataset.file is None, "it was opened in the script's own process"
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_reading_the_first_batch_loses_no_sample(run):
    result = run("""
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            assert 1 <= len(next(iter(loader))) <= BATCH
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]
    if result.outcome is not None:
        assert result.outcome.account.samples.skipped == 0


def test_reading_the_first_batch_before_the_loop_loses_no_sample(run):
    result = run("""
        job, model, optimizer, loader = begin()
        print(next(iter(loader)).shape)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]
    if result.outcome is not None:
        assert result.outcome.account.samples.skipped == 0


EPOCHAL = """
    class Epochal(Numbers):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __getitem__(self, index):
            return torch.tensor([index, self.epoch])

    dataset = Epochal()
    job, model, optimizer, loader = begin(loader=data(dataset, num_workers=WORKERS), epochs=3)
    for epoch in job.epochs():
        dataset.set_epoch(epoch)
        for batch in loader:
            i, made_for = batch.T
            assert (made_for == epoch).all()
            train(model, optimizer, i)
    job.save("out.safetensors")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_datasets_set_epoch_counts_in_workers(run, workers):
    assert run(EPOCHAL.replace("WORKERS", workers)).counts() == [3.0]


NOISY = """
    class Noisy(Numbers):
        def __getitem__(self, index):
            drawn = [torch.randint(10**9, ()), torch.tensor(np.random.randint(10**9))]
            return torch.tensor(index), torch.stack(drawn)

    job, model, optimizer, loader = begin(loader=data(Noisy(), num_workers=2), epochs=1, seed=SEED)
    for epoch in job.epochs():
        for i, noise in loader:
            print("drawn", *noise.flatten().tolist(), flush=True)
            train(model, optimizer, i)
    job.save("out.safetensors")
"""


def drawn(result):
    return [value for line in result.lines("drawn") for value in line.split()]


def test_random_augmentation_in_workers_follows_the_seed(run_alone):
    first, again, other = (drawn(run_alone(NOISY.replace("SEED", seed))) for seed in ("7", "7", "8"))
    assert len(first) == 128
    assert first == again
    assert not set(first) & set(other)


def test_random_augmentation_in_workers_differs_between_trainers(run_in_job):
    values = drawn(run_in_job(NOISY.replace("SEED", "7")))
    assert len(values) == len(set(values)) == 128


def test_a_loader_with_an_iter_of_its_own_is_refused(refused):
    refused(
        """
        class Scaled(DataLoader):
            def __iter__(self):
                for i in super().__iter__():
                    yield i * 0 + 1

        job, model, optimizer, loader = begin(loader=Scaled(Numbers(), batch_size=BATCH))
        """,
        "the loader is a Scaled, a DataLoader with an __iter__ of its own",
        "collate_fn",
    )


def test_the_loader_has_the_attributes_of_the_scripts_own(run):
    result = run("""
        job, model, optimizer, loader = begin()
        assert isinstance(loader, DataLoader) and len(loader) == 16
        for epoch in job.epochs():
            for n, i in enumerate(loader):
                train(model, optimizer, i)
                text = f"[{n * loader.batch_size}/{len(loader.dataset)}]"
                assert text == f"[{n * 4}/64]"
                assert len(loader) == 16
        assert loader.drop_last is False and loader.num_workers == 0
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_a_dataset_that_works_in_workers_alone_does(run):
    result = run("""
        class Only(Numbers):
            handle = None

            def __getitem__(self, index):
                return torch.tensor(self.handle[index])

        def open_it(_):
            torch.utils.data.get_worker_info().dataset.handle = list(range(SAMPLES))

        job, model, optimizer, loader = begin(loader=data(Only(), num_workers=1, worker_init_fn=open_it))
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


AHEAD = """
    class Counted(Numbers):
        def __getitem__(self, index):
            with made.get_lock():
                made.value += 1
            return super().__getitem__(index)

    import multiprocessing
    made = multiprocessing.Value("i", 0)
    job, model, optimizer, loader = begin(loader=data(Counted(), num_workers=2), epochs=1)
    used = most = 0
    for epoch in job.epochs():
        for i in loader:
            train(model, optimizer, i)
            used += len(i)
            most = max(most, made.value - used)
    print("made", made.value, flush=True)
    print("ahead", most, flush=True)
    job.save("out.safetensors")
"""


def test_workers_go_on_beyond_a_task_and_make_each_sample_once(run_in_job):
    """With tasks of one batch, the workers prefetch across tasks and load each sample once."""
    result = run_in_job(AHEAD, trainers=1)
    assert result.counts() == [1.0]
    assert result.lines("made") == ["64"]
    assert int(result.lines("ahead")[0]) >= 2 * 4


def test_workers_alone_make_each_sample_once(run_alone):
    result = run_alone(AHEAD)
    assert result.lines("made") == ["64"]
    assert int(result.lines("ahead")[0]) >= 2 * 4


def test_training_on_the_scripts_own_loader_is_refused(refused):
    refused(
        """
        mine = data()
        job, model, optimizer, loader = begin(loader=mine)
        for epoch in job.epochs():
            for i in mine:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "optimizer.step() outside of the loop over the loader that prepare returned",
        "iterate that loader",
    )


def test_a_second_pass_in_one_epoch_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            with torch.no_grad():
                losses = [float(model(i)) for i in loader]
        job.save("out.safetensors")
        """,
        "the loader is iterated a second time in one epoch",
        "a DataLoader of your own",
    )


def test_a_prefetcher_that_asks_for_the_next_batch_before_the_step_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            batches = iter(loader)
            following = next(batches, None)
            while following is not None:
                present, following = following, next(batches, None)
                train(model, optimizer, present)
        job.save("out.safetensors")
        """,
        "optimizer.step()",
        "a step belongs to a batch of the job",
    )


def test_a_pass_that_is_cut_short_by_zip_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        for epoch in job.epochs():
            for i, _ in zip(loader, range(3)):
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "the loop over the loader was left before its end",
        "Subset",
    )


def test_a_pass_before_the_epochs_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        mean = sum(float(i.float().mean()) for i in loader)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
        """,
        "the loader is iterated outside of `for epoch in job.epochs():`",
        "a DataLoader of your own",
    )


def test_the_scripts_own_loader_gives_the_training_accuracy(run):
    result = run("""
        mine = data()
        job, model, optimizer, loader = begin(loader=mine)
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
            found = job.evaluate(lambda m: sum(float(m(i)) for i in mine))
            assert found == -64.0 * (epoch + 1)
        job.save("out.safetensors")
    """)
    assert result.counts() == [2.0]


def test_a_weighted_sampler_draws_by_its_weights(run):
    result = run("""
        weights = torch.ones(SAMPLES)
        weights[32:] = 0.0
        sampler = torch.utils.data.WeightedRandomSampler(weights, num_samples=40, replacement=True)
        job, model, optimizer, loader = begin(loader=data(sampler=sampler))
        assert len(loader) == 10
        for epoch in job.epochs():
            for i in loader:
                loss = -torch.bincount(i, minlength=SAMPLES).float() @ model.w
                optimizer.zero_grad(); loss.backward(); optimizer.step()
        job.save("out.safetensors")
    """)
    w = result.model()["w"]
    assert w.sum() == 2 * 40
    assert not w[32:].any()


def test_a_subset_trains_its_samples(run):
    result = run("""
        job, model, optimizer, loader = begin(loader=data(Subset(Numbers(), range(10, 30))))
        for epoch in job.epochs():
            for i in loader:
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    w = result.model()["w"]
    assert w[10:30].tolist() == [2.0] * 20
    assert w.sum() == 40


def test_what_drop_last_leaves_out_sits_the_epoch_out(run):
    result = run("""
        job, model, optimizer, loader = begin(loader=data(batch_size=7, drop_last=True))
        assert len(loader) == 9
        for epoch in job.epochs():
            for i in loader:
                assert len(i) == 7
                train(model, optimizer, i)
        job.save("out.safetensors")
    """)
    assert result.model()["w"].sum() == 2 * 63


def test_a_stream_of_samples_is_refused(refused):
    refused(
        """
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(range(SAMPLES))

        job, model, optimizer, loader = begin(loader=DataLoader(Stream(), batch_size=BATCH))
        """,
        "Stream is an IterableDataset",
        "map-style Dataset",
    )


def test_a_setting_of_the_loader_after_prepare_is_refused(refused):
    refused(
        """
        job, model, optimizer, loader = begin()
        loader.num_workers = 2
        """,
        "loader.num_workers = 2 after prepare",
        "set it on the DataLoader before",
    )


def test_the_order_is_the_same_alone_and_for_the_same_seed(run_alone):
    text = """
        job, model, optimizer, loader = begin(seed=SEED, epochs=1)
        for epoch in job.epochs():
            for i in loader:
                print("batch", *i.tolist(), flush=True)
                train(model, optimizer, i)
        job.save("out.safetensors")
    """
    first, again, other = (run_alone(text.replace("SEED", seed)).lines("batch") for seed in ("7", "7", "8"))
    assert first == again
    assert first != other
