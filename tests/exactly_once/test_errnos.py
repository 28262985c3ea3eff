"""Send and receive calls fail at random, with each errno that they can return: no sample is lost and no process ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import faulty
from tests.exactly_once.test_counting import check
from tests.realjob import RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class FaultyJob(RealJob):
    """A job in which one in 400 socket calls of each process fails."""

    def _arguments(self, role: str, index: int) -> list[str]:
        kind, *rest = super()._arguments(role, index)
        given = ["-m", *rest] if kind == "-m" else rest
        return ["script", str(Path(faulty.__file__)), f"{role} {index}", "400", *given]


@pytest.mark.parametrize("tcp", [False, True], ids=["shared memory", "tcp"])
def test_whatever_a_socket_fails_with_no_sample_is_lost_and_no_process_ends(zygote, tmp_path, tcp):
    with FaultyJob(zygote, tmp_path / "j", epochs=4, trainers=2, tcp=tcp) as job:
        job.run_to_the_end(seconds=200)
        check(job)
        assert not job.restarts, job.last_lines()
        again = sum(
            job.log("master", 0).count(message) for message in ("disconnected without leaving", "is here", "joined")
        )
        assert again > 8, f"hardly a connection has failed: {again}"
