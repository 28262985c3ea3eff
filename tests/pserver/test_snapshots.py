"""A snapshot is complete or absent, and every damaged bit is detected."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from shoal.pserver.snapshots.files import (
    SlotRecord,
    SnapshotError,
    delete,
    delete_temporary_files,
    describe,
    pin,
    pinned,
    read,
    usable_snapshots,
    write,
)
from tests.soak import examples

JOB = {"uid": "job1", "digest": "shape1"}


def make_records(*slots: int) -> list[SlotRecord]:
    return [SlotRecord(slot, 10 * slot, 100 * slot, slot, bytes([0, 255, slot])) for slot in slots]


def make_tensors(*slots: int) -> dict[int, dict[str, Tensor]]:
    made = {}
    for slot in slots:
        made[slot] = {
            "dense/a/weird name@3": torch.arange(5.0) + slot,
            "state/step/a@3": torch.tensor(float(slot)),
            "rows/t/ids": torch.empty(0, dtype=torch.int64),
            "rows/t/values": torch.empty((0, 4)),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "across": torch.arange(6).reshape(2, 3).T,
            "flags": torch.tensor([True, False, True]),
            "complex": torch.tensor([1 + 2j]),
        }
    return made


def write_one(directory: Path, *slots: int) -> str:
    return write(directory, **JOB, records=make_records(*slots), tensors=make_tensors(*slots))


def assert_same(left: dict[int, dict[str, Tensor]], right: dict[int, dict[str, Tensor]]) -> None:
    assert left.keys() == right.keys()
    for slot, tensors in left.items():
        assert tensors.keys() == right[slot].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == right[slot][name].dtype
            assert torch.equal(tensor, right[slot][name])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    name = write_one(tmp_path, 7, 0)
    description, tensors = read(tmp_path / name, **JOB)
    assert description.slots == make_records(0, 7)
    assert description == describe(tmp_path / name, **JOB)
    assert_same(tensors, make_tensors(0, 7))
    assert_same(read(tmp_path / name, **JOB, slots=[7])[1], make_tensors(7))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_safetensors_library_reads_it_too(tmp_path: Path) -> None:
    name = write_one(tmp_path, 3)
    assert_same({3: {k.removeprefix("slot-0003/"): v for k, v in load_file(tmp_path / name).items()}}, make_tensors(3))


def test_a_slot_that_is_not_in_it(tmp_path: Path) -> None:
    name = write_one(tmp_path, 3)
    with pytest.raises(SnapshotError, match=r"the slots \[4\] are not in it; it has \[3\]"):
        read(tmp_path / name, **JOB, slots=[3, 4])


@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_flipped_bit_is_found(tmp_path: Path, data: st.DataObject) -> None:
    name = write_one(tmp_path, 1, 2)
    content = bytearray((tmp_path / name).read_bytes())
    # The header is small, but most kinds of damage show there.
    head = 8 + int.from_bytes(content[:8], "little")
    at = data.draw(st.one_of(st.integers(0, head - 1), st.integers(head, len(content) - 1)))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / name).write_bytes(content)
    try:
        description, tensors = read(tmp_path / name, **JOB)
    except SnapshotError as error:
        assert name in str(error)  # noqa: PT017 - no error is correct where only padding changed
    else:
        assert description.slots == make_records(1, 2)
        assert_same(tensors, make_tensors(1, 2))


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_that_is_cut_off_or_too_long_is_not_offered(tmp_path: Path, data: st.DataObject) -> None:
    name = write_one(tmp_path, 1)
    content = (tmp_path / name).read_bytes()
    length = data.draw(st.integers(0, len(content) + 20).filter(lambda n: n != len(content)))
    (tmp_path / name).write_bytes((content + bytes(20))[:length])
    with pytest.raises(SnapshotError, match=r"cut off|too long"):
        describe(tmp_path / name, **JOB)


def test_strangers_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / write_one(tmp_path, 1)
    with pytest.raises(SnapshotError, match="is of another job \\(job1; this one is job2\\)"):
        describe(path, uid="job2", digest="shape1")
    with pytest.raises(SnapshotError, match="of another model, optimizer or dataset"):
        read(path, uid="job1", digest="shape2")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SnapshotError, match=r"model\.safetensors is not a snapshot of Shoal"):
        describe(tmp_path / "model.safetensors", **JOB)
    with pytest.raises(SnapshotError, match="is not there"):
        read(tmp_path / "none.safetensors", **JOB)


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.pserver.snapshots.files.FORMAT", 2)
    path = tmp_path / write_one(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(SnapshotError, match="has the format 2; this version of Shoal reads 1"):
        describe(path, **JOB)


def test_offers_are_newest_first_whatever_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_one(tmp_path, 1)
    monkeypatch.setattr("time.time_ns", lambda: 5)
    second = write_one(tmp_path, 2)
    third = write_one(tmp_path, 1, 2)
    (tmp_path / second).write_bytes(b"short")
    (tmp_path / "notes.txt").write_text("not a snapshot")
    found = usable_snapshots(tmp_path, **JOB)
    assert [name for name, _ in found.good] == [third, first]
    assert [name for name, _ in found.refused] == [second]
    assert "cut off" in found.refused[0][1]
    assert usable_snapshots(tmp_path / "none", **JOB).good == []


def test_pins_outlast_the_process_and_forbid_deletion(tmp_path: Path) -> None:
    first, second = write_one(tmp_path, 1), write_one(tmp_path, 1)
    pin(tmp_path, first)
    assert pinned(tmp_path) == {first}
    with pytest.raises(SnapshotError, match="is pinned and stays"):
        delete(tmp_path, first)
    delete(tmp_path, second)
    delete(tmp_path, second)
    assert [name for name, _ in usable_snapshots(tmp_path, **JOB).good] == [first]
    with pytest.raises(SnapshotError, match="cannot be pinned: it is not there"):
        pin(tmp_path, second)


def test_a_write_that_finds_no_room_leaves_the_older_ones(tmp_path: Path) -> None:
    """The limit on a file's size makes the kernel refuse in the middle of the data, as a full disk does."""
    first = write_one(tmp_path, 1)
    large = {1: {"dense/a@0": torch.zeros(1_000_000)}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(SnapshotError, match=r"a snapshot of 4\.0 MB could not be written to .*: File too large"):
            write(tmp_path, **JOB, records=make_records(1), tensors=large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [first]
    read(tmp_path / first, **JOB)


def test_a_full_disk_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        SnapshotError, match=r"no room for a snapshot .* the disk is full; older snapshots are untouched"
    ):
        write_one(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys
from pathlib import Path
import torch
from shoal.pserver.snapshots.files import SlotRecord, write
real = os.fsync
def fsync(descriptor):
    real(descriptor)
    os.kill(os.getpid(), 9)
os.fsync = fsync
write(Path(sys.argv[1]), uid="job1", digest="shape1", records=[SlotRecord(1, 0, 0, 0, b"")],
      tensors={1: {"a": torch.zeros(9)}})
"""


def test_a_process_killed_before_the_rename_leaves_no_snapshot(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert usable_snapshots(tmp_path, **JOB) == usable_snapshots(tmp_path / "none", **JOB)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(delete_temporary_files(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_files_may_be_copied_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    name = write_one(tmp_path / "a", 1)
    shutil.copy(tmp_path / "a" / name, tmp_path / name)
    assert_same(read(tmp_path / name, **JOB)[1], make_tensors(1))


def test_the_description_is_for_people_to_read_too(tmp_path: Path) -> None:
    content = (tmp_path / write_one(tmp_path, 1)).read_bytes()
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description = json.loads(head["__metadata__"]["shoal"])
    assert description["uid"] == "job1"
    assert description["slots"][0]["samples"] == 100
