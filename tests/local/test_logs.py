"""Reading the logs of a job's processes."""

import pytest

from shoal.local.state.logs import LogReader, previous_lines


@pytest.fixture
def log(tmp_path):
    return tmp_path / "trainer-0.log"


def read(reader):
    return list(reader.read_new())


def test_an_incomplete_line_waits_for_its_end(log):
    reader = LogReader(log)
    assert read(reader) == []
    log.write_bytes("eins\nzwölf".encode()[:-2])
    assert read(reader) == [b"eins"]
    log.write_bytes("eins\nzwölf\nend".encode())
    assert read(reader) == ["zwölf".encode()]
    assert list(reader.read_rest()) == [b"end"]
    assert list(reader.read_rest()) == []


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(("tail", "expected"), [(0, []), (1, [b"c"]), (2, [b"b", b"c"]), (9, [b"a", b"b", b"c"])])
def test_the_last_lines(log, tail, expected, end):
    log.write_text(f"a\nb\nc{end}")
    reader = LogReader(log, tail=tail)
    assert [*reader.read_new(), *reader.read_rest()] == expected
    log.write_text(f"a\nb\nc{end}\nd\n")
    assert read(reader)[-1:] == [b"d"]


def test_the_last_lines_of_a_log_of_many_blocks(log):
    log.write_bytes(b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(5000)))
    lines = read(LogReader(log, tail=3000))
    assert (len(lines), lines[0].split()[0], lines[-1].split()[0]) == (3000, b"2000", b"4999")


def test_a_long_line_is_cut_and_whole_without_a_limit(log):
    log.write_bytes(b"x" * 5_000_000 + b"\nnext\n" + b"y" * 3_000_000)
    reader = LogReader(log, longest=100)
    assert read(reader) == [b"x" * 100 + b" ... (line cut)", b"next"]
    assert list(reader.read_rest()) == [b"y" * 100 + b" ... (line cut)"]
    assert list(map(len, read(LogReader(log)))) == [5_000_000, 4]


def test_a_log_that_was_replaced_is_read_from_its_beginning(log):
    log.write_text("one\ntwo\n")
    reader = LogReader(log)
    assert read(reader) == [b"one", b"two"]
    log.write_text("new\n")
    assert read(reader) == [b"new"]


def test_the_run_before_the_last_one(log):
    head = "--- 2026-01-02 03:04:05 starts: python train.py\n"
    log.write_text(f"{head}first\n{head}second\n{head}third\n")
    assert previous_lines(log) == [head.strip().encode(), b"second"]
    log.write_text(f"{head}first\n")
    assert previous_lines(log) is None
