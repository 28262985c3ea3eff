from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.store import ALL_JOBS, JobKeys

parts = st.from_regex(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", fullmatch=True)
jobs = st.builds(JobKeys, parts, parts, parts)


@given(jobs, st.text(max_size=20))
def test_a_key_names_its_job(job, record):
    key = job.at(record)
    assert key.startswith(ALL_JOBS)
    assert JobKeys.parse(key) == (job, record)
    assert job.relative(key) == record


@given(jobs, jobs)
def test_no_job_lies_within_another(one, other):
    assert one == other or not other.prefix.startswith(one.prefix)


@given(st.tuples(st.integers(0, 99_999_999), st.integers(0, 99_999_999)), st.tuples(st.integers(0, 99_999_999)))
def test_keys_sort_as_numbers_do(one, other):
    job = JobKeys("default", "flights", "u1")
    two = (other[0], one[1])
    assert (job.tasks_of(*one) < job.tasks_of(*two)) == (one < two)


def test_the_schema_matches_the_readme():
    job = JobKeys("default", "flights", "u1")
    assert job.prefix == "/shoal/v1/jobs/default/flights/u1/"
    assert job.relative(job.tasks_of(3, 41)) == "tasks/00000003/00000041"
    assert job.relative(job.member(255)) == "members/00000000000000ff"
    assert job.relative(job.evaluation(2, 7)) == "evaluations/00000002/0007"
    assert job.relative(job.metric(2, 7)) == "metrics/00000002/00000007"
    plain = (
        "master",
        "shape",
        "begun",
        "epoch",
        "reached",
        "stopped",
        "saved",
        "counters",
        "progress",
        "outcome",
        "desired",
    )
    assert [job.relative(getattr(job, name)) for name in plain] == list(plain)


@pytest.mark.parametrize("bad", ["", "a/b", "/", "-", "a\n", ".."])
def test_a_part_that_would_change_the_meaning_is_refused(bad):
    with pytest.raises(ValueError, match="uid"):
        JobKeys("default", "flights", bad)


@pytest.mark.parametrize("key", ["", "/other", ALL_JOBS, ALL_JOBS + "a/b", ALL_JOBS + "a/b/c", ALL_JOBS + "a//c/d"])
def test_keys_of_no_job(key):
    assert JobKeys.parse(key) is None


def test_another_jobs_key_is_refused():
    with pytest.raises(ValueError, match="does not belong to the job"):
        JobKeys("default", "flights", "u1").relative("/shoal/v1/jobs/default/flights/u2/master")
