"""A job's life cycle on a real control plane with hollow nodes: the operator is a process that is killed and started again."""

from __future__ import annotations

import signal

import pytest

from tests.operator.world import manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def test_from_apply_to_complete(world):
    world.j.apply()
    world.j.at_work([0, 1])
    world.j.state("Running")
    assert world.j.status()["trainers"] | {"text": "2/2", "range": "2-4"} == world.j.status()["trainers"]
    assert (world.j.condition("Accepted")["status"], world.j.condition("Running")["status"]) == ("True", "True")
    world.j.wait("Progressing")
    world.j.scale(4)
    world.j.at_work([0, 1, 2, 3])
    world.j.scale(3)
    world.j.at_work([0, 1, 2])
    world.j.end("Complete")
    world.j.wait("Complete")
    reported = world.kubectl("get", "tj", "j")
    assert reported.split()[: reported.split().index("STATE") + 1][-1] == "STATE"
    assert "Complete" in reported
    assert world.j.status()["account"] | {"lost": 0, "twice": 0} == world.j.status()["account"]
    world.j.nobody()
    assert world.j.pods("trainer", ready=False) == ["j-trainer-0", "j-trainer-1", "j-trainer-2"], "their logs are kept"


def test_a_job_whose_end_is_reported_late_keeps_its_trainers(world):
    """Trainers that exit before the operator receives the job's outcome keep their pods and logs, and are not replaced."""
    world.end()
    world.start("tests.operator.late")
    world.j.apply()
    world.j.at_work([0, 1])
    world.j.state("Running")
    before = world.j.pod_uids("trainer")
    world.j.end("Complete")
    world.j.wait("Complete")
    world.j.nobody()
    assert world.j.pod_uids("trainer") == before


def test_suspended_and_resumed_through_a_new_operator(world):
    servers = world.claims()
    world.j.apply(parameterServer=servers)
    world.j.at_work([0, 1])
    world.j.apply(suspend=True, parameterServer=servers)
    world.j.nobody()
    world.j.state("Suspended")
    world.end(signal.SIGKILL)
    world.j.apply(suspend=False, parameterServer=servers)
    world.start()
    world.j.at_work([0, 1])


@pytest.mark.parametrize("before", ["0", "1"], ids=["right after it", "right before it"])
def test_killed_at_every_request_of_a_life(world, before):
    """Each operator is killed one request later than the one before; together they start the job and suspend it."""
    world.end(signal.SIGKILL)
    servers = world.claims()
    world.j.apply(parameterServer=servers)
    deaths = killed_until(
        world, lambda: len(world.j.pods("trainer")) == 2 and len(world.j.pods("pserver")) == 2, before
    )
    assert deaths >= 3
    world.start()
    world.j.at_work([0, 1])
    world.end(signal.SIGKILL)
    world.j.apply(suspend=True, parameterServer=servers)
    killed_until(
        world, lambda: not world.j.pods("pserver", ready=False) and not world.j.pods("master", ready=False), before
    )
    world.start()
    world.j.nobody()


def killed_until(world, reached, before: str) -> int:
    """Return how many operators were killed before the state was reached."""
    for number in range(1, 40):
        running = world.start("tests.operator.dying", DIE_AT=str(number), DIE_BEFORE=before)
        world.until(lambda running=running: running.poll() is not None or reached(), "its death, or the end")
        if reached():
            running.kill()
            running.wait(30)
            return number - 1
        assert running.returncode == -signal.SIGKILL, world.log()
    raise AssertionError(world.log())


def uid(world, kind: str, name: str) -> str:
    """Return the uid of the object of this name, or an empty string if there is none."""
    found = world.api.get(kind, name, world.namespace)
    return found["metadata"]["uid"] if found is not None else ""


def test_objects_deleted_by_others_are_recreated(world):
    world.j.apply()
    world.j.at_work([0, 1])
    for kind, name in (
        ("Pod", "j-trainer-0"),
        ("StatefulSet", "j-pserver"),
        ("Deployment", "j-master"),
        ("Service", "j-master"),
        ("PodDisruptionBudget", "j-trainer"),
    ):
        before = uid(world, kind, name)
        # With --wait, kubectl would wait for ever where the object has been created again before it looks.
        world.kubectl("delete", kind, name, "--wait=false")
        world.until(lambda made=(kind, name), before=before: uid(world, *made) not in {"", before}, f"another {name}")
    world.j.at_work([0, 1])
    world.until(lambda: len(world.list("Service")) == 2 and len(world.list("PodDisruptionBudget")) == 2, "all of it")


def test_a_new_template_rolls_the_trainers_one_by_one(world):
    world.j.apply()
    world.j.at_work([0, 1])
    world.j.apply(image="example.org/train:2")

    def images():
        return {pod["spec"]["containers"][0]["image"] for pod in world.j.all_pods("trainer")}

    world.until(lambda: images() == {"example.org/train:2"}, "the new image")
    world.j.at_work([0, 1])


def test_deleted_while_it_runs_nothing_is_left(world):
    world.j.apply()
    world.j.at_work([0, 1])
    world.j.delete()
    world.j.nothing()


def test_a_broken_job_delays_no_other(world):
    broken = {"minReplicas": 2, "maxReplicas": 2, "template": {"spec": {"containers": [{"name": "x"}]}}}
    good = world.job("good")
    world.apply(manifest("j", trainer=broken), manifest("good"))
    good.at_work([0, 1])
    words = "a pod made from spec.trainer is refused: spec.containers[1].image: Required value"
    world.j.has_condition("Accepted", "False", "InvalidTemplate", words)
    assert world.j.made() == []
