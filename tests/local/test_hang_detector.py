"""Which silent processes the watchdog kills, and which it spares because a process that they depend on is silent."""

from __future__ import annotations

from shoal.local.hang_detector import SILENT_SECONDS, START_SECONDS, HangDetector
from shoal.local.supervisor import ETCD, MASTER, SERVER, TRAINER

STEP_SECONDS = 600.0
E, M, S, T = (ETCD, 0), (MASTER, 0), (SERVER, 0), (TRAINER, 0)
ALL = {E, M, S, T}


class Story:
    """Simulates processes: each second every process that can answer does, and the watchdog checks them all."""

    dies = True
    """Whether a kill ends a process at once."""

    def __init__(self, alive=ALL):
        self.now = 0.0
        self.found = []
        self.watchdog = HangDetector(0.0, step_seconds=STEP_SECONDS)
        self.alive = dict.fromkeys(alive, 0.0)

    def run(self, seconds, *, silent=()):
        """Run for some seconds; return each killed process with the second of its kill. A killed process starts 1 s later."""
        killed = {}
        begun = self.now
        while self.now < begun + seconds:
            self.now += 1.0
            speaks = {place for place in self.alive if place not in silent}
            if E in speaks:
                self.watchdog.etcd_answered(self.now)
            if M in speaks and (E in speaks or E not in self.alive):
                self.watchdog.progress_reported([place for place in speaks if place in {S, T}], self.now)
            for place in self.watchdog.hung(self.alive, self.now):
                killed.setdefault(place, self.now - begun)
                if self.dies:
                    self.alive[place] = self.now + 1.0
                else:
                    self.found.append(place)
        return killed

    def sleep(self, seconds):
        """Advance the clock without any answer or check, as when the machine is suspended."""
        self.now += seconds


def begun(alive=ALL):
    story = Story(alive)
    assert story.run(100) == {}
    return story


def test_no_process_is_killed_while_all_report():
    assert begun().run(3000) == {}


def test_a_silent_process_is_killed_after_its_timeout():
    for place in (E, M, S, T):
        killed = begun().run(900, silent={place})
        # A process that is started again and stays silent is killed again; `run` returns the first kill.
        assert set(killed) == {place}
        seconds = STEP_SECONDS if place == T else SILENT_SECONDS
        assert seconds <= killed[place] <= seconds + 2


def test_a_process_that_never_reported_has_its_start_time_and_a_trainer_no_limit():
    assert Story().run(START_SECONDS + SILENT_SECONDS + 2, silent={S}) == {S: START_SECONDS + SILENT_SECONDS + 1}
    assert Story().run(5000, silent={T}) == {}


def test_a_process_that_waits_for_another_one_is_not_hung():
    assert set(begun().run(25, silent={E})) == set()
    assert set(begun().run(31, silent={E, M, S})) == {E}
    story = begun()
    assert set(story.run(29, silent={M, S})) == set()
    assert set(story.run(25, silent={S})) == set(), "the master has just reported again"
    assert set(story.run(15, silent={S})) == {S}


def test_a_master_that_waits_for_an_external_etcd_is_not_hung():
    story = Story({M, S, T})
    assert story.run(900, silent={M}) == {}
    assert story.run(100) == {}
    assert set(story.run(35, silent={M})) == {M}


def test_no_process_is_killed_after_the_machine_was_suspended():
    story = begun()
    story.sleep(100_000)
    assert story.run(10) == {}
    story.sleep(100_000)
    assert set(story.run(29, silent={S})) == set()
    assert set(story.run(5, silent={S})) == {S}


def test_a_gap_does_not_count_as_a_first_report():
    """A trainer started again may prepare for any length of time, whatever its predecessor has reported."""
    story = begun()
    story.alive[T] = story.now
    assert story.run(10, silent={T}) == {}
    story.sleep(20)
    assert story.run(5000, silent={T}) == {}
    fresh = Story()
    assert fresh.run(60, silent={S}) == {}
    fresh.sleep(20)
    assert fresh.run(25, silent={S}) == {}


def test_a_process_that_takes_long_to_die_is_found_once():
    story = begun()
    story.dies = False
    story.run(100, silent={E})
    assert story.found == [E]
