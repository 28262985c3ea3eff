"""Each problem of a trace is reported once, with the field and the fix."""

import json

import pytest

from shoal.simulator import TraceError, load, loads
from shoal.simulator.trace import Speed
from shoal.simulator.world.layout import Layout

NODES = "nodes: [{count: 2, resources: {cpu: 4, memory: 8Gi}}]\n"
JOB = "{name: a, work: 10, min: 1, max: 2, request: {cpu: 1}}"


def job(**parts) -> str:
    """Return a trace whose one job has these parts (YAML)."""
    parts = {"name": "a", "work": "10", "min": "1", "max": "2", "request": "{cpu: 1}"} | parts
    return NODES + f"jobs: [{{{', '.join(f'{name}: {value}' for name, value in parts.items() if value)}}}]\n"


WRONG = [
    ("", "the file is empty; it needs nodes and jobs"),
    ("[]", "not a mapping; a trace has nodes, jobs, pods, deployments"),
    ("nodes: [", "not YAML: "),
    (f"jobs: [{JOB}]", "nodes: is missing; add it"),
    (f"nodes: []\njobs: [{JOB}]", "nodes: must not be empty"),
    (NODES, "nothing arrives in it; add jobs, pods or deployments"),
    (NODES + f"jobs: [{JOB}]\n" + NODES, "line 3: nodes: is written twice; keep one"),
    (NODES + f"jobs: [{JOB}]\ncycle_second: 3", "cycle_second: unknown field; did you mean cycle_seconds?"),
    (NODES + f"jobs: [{JOB}]\ncycle_seconds: 0", "cycle_seconds: 0 is too small; it must be at least 0.1"),
    (NODES + f"jobs: [{JOB}]\nstart_seconds: -1", "start_seconds: -1 is too small; it must be at least 0"),
    (NODES + f"jobs: [{JOB}]\nstop_seconds: .nan", "stop_seconds: '.nan' is not a number"),
    (NODES + f"jobs: [{JOB}, {JOB}]", "jobs[1].name: 'a' is the name of jobs[0] too; choose another"),
    (
        NODES + "pods: [{name: w, request: {}}]\ndeployments: [{name: w, request: {}, steps: [[0, 1]]}]",
        "deployments[0].name: 'w' is the name of pods[0] too; choose another",
    ),
    (job(arrival="-3"), "jobs[0].arrival: -3 is too small; it must be at least 0"),
    (job(arrival="true"), "jobs[0].arrival: true is not a number"),
    (job(arrival="soon"), "jobs[0].arrival: 'soon' is not a number"),
    (job(name='""'), "jobs[0].name: must not be empty"),
    (job(name='"a b"'), "jobs[0].name: must have no spaces"),
    (job(name="7"), 'jobs[0].name: 7 is not text; write "7" in quotes'),
    (job(name="a" * 254), "jobs[0].name: is too long; it must have at most 253 characters"),
    (job(lifetime="3"), "jobs[0].lifetime: unknown field here; it belongs to each of pods"),
    (job(cycle_seconds="3"), "jobs[0].cycle_seconds: unknown field here; it belongs to the top"),
    (job(work="0"), "jobs[0].work: 0 is too small; it must be above 0"),
    (job(work=""), "jobs[0].work: is missing; add it"),
    (job(min="3"), "jobs[0].min: 3 is above max 2; lower it, or raise max"),
    (job(min="0"), "jobs[0].min: 0 is too small; it must be at least 1"),
    (job(min="1.5"), "jobs[0].min: 1.5 is not a whole number"),
    (job(max="1000000"), "jobs[0].max: 1000000 is too large; it must be at most 100000"),
    (job(request="{cpu: -1}"), "jobs[0].request.cpu: '-1' is negative"),
    (job(request="{cpu: much}"), """jobs[0].request.cpu: 'much' is not a quantity such as "1", "500m" or "1Gi\""""),
    (job(request="4"), "jobs[0].request: 4 is not a mapping"),
    (job(colour="red"), "jobs[0].colour: unknown field; known here: name, arrival, work, min, max, request, priority"),
    (job(master="{request: {}, counts: 1}"), "jobs[0].master.counts: unknown field; did you mean count?"),
    (job(master="{count: 2, request: {}}"), "jobs[0].master.count: a job has one master; leave it out"),
    (job(speed="90"), "jobs[0].speed: 90 is no speed; write {linear: 90}, or rates by size: {1: 90, 8: 500}"),
    (job(speed="{linear: 0}"), "jobs[0].speed: linear is 0; a rate must be above 0"),
    (job(speed="{1: -4}"), "jobs[0].speed: the rate of 1 is -4; a rate must be above 0"),
    (job(speed="{0: 4}"), "jobs[0].speed: '0' is no size; write numbers of trainers from 1 on, or linear"),
    (job(speed='{1: 4, "1": 5}'), "jobs[0].speed.1: is written twice; keep one"),
    (job(pool="gpu"), "jobs[0].pool: no nodes are of pool 'gpu'; known: none"),
    (NODES + "pods: [{name: w, request: {}, count: 0}]", "pods[0].count: 0 is too small; it must be at least 1"),
    (NODES + "pods: [{name: w, request: {}, lifetime: 0}]", "pods[0].lifetime: 0 is too small; it must be above 0"),
    (NODES + "deployments: [{name: w, request: {}, steps: []}]", "deployments[0].steps: must not be empty"),
    (
        NODES + "deployments: [{name: w, request: {}, steps: [[5, 1], [5, 2]]}]",
        "deployments[0].steps[1]: at 5 s is not after the step before it, at 5 s; sort them by time",
    ),
    (
        NODES + "deployments: [{name: w, request: {}, steps: [[5, -1]]}]",
        "deployments[0].steps[0][1]: -1 is too small; it must be at least 0",
    ),
    (
        f"nodes: [{{count: 2, resources: {{memory: 4E}}}}]\njobs: [{JOB}]",
        "nodes[0].resources.memory: all nodes together have above 2^62; lower it",
    ),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_trace_is_refused_with_the_field_and_the_fix(text, words):
    with pytest.raises(TraceError) as error:
        loads(text, source="t.yaml")
    assert str(error.value).startswith("t.yaml: ")
    assert words in str(error.value)
    assert len(error.value.problems) == 1


def test_all_problems_are_reported_at_once():
    with pytest.raises(TraceError) as error:
        loads(job(min="-1", work="-1", speed="{}"))
    assert len(error.value.problems) == 3


def test_unreadable_files_have_a_reason(tmp_path):
    with pytest.raises(TraceError, match=r"none\.yaml: there is no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(TraceError, match="cannot be read: "):
        load(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="is not text in UTF-8"):
        load(tmp_path / "bytes")


def test_json_is_taken_too():
    value = {
        "nodes": [{"resources": {"cpu": 4}}],
        "jobs": [{"name": "a", "work": 5, "max": 3, "request": {"cpu": "1"}, "speed": {"1": 10, "3": 20}}],
    }
    assert loads(json.dumps(value)).jobs[0].speed == Speed(points=((1, 10.0), (3, 20.0)))


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert loads(job(work="1e6")).jobs[0].work == 1e6


@pytest.mark.parametrize(
    ("trainers", "rate"), [(0, 0), (1, 100), (2, 100), (3, 150), (4, 200), (6, 250), (8, 300), (99, 300)]
)
def test_speed_is_interpolated_between_sizes_and_flat_outside(trainers, rate):
    assert Speed(points=((2, 100.0), (4, 200.0), (8, 300.0)))(trainers) == rate


def test_without_sizes_speed_is_linear():
    assert [Speed(linear=2.5)(trainers) for trainers in (0, 1, 4)] == [0, 2.5, 10]


def test_amounts_become_whole_numbers_and_like_pods_one_shape():
    trace = loads(
        """
        nodes: [{count: 2, resources: {cpu: 1500m, memory: 1Gi, pods: 5}}, {pool: gpu, resources: {cpu: 4, example.com/gpu: 2}}]
        jobs:
          - {name: a, work: 1, max: 2, request: {cpu: 0.5}, servers: {count: 3, request: {cpu: 500m}}}
          - {name: b, work: 1, max: 2, request: {cpu: 0.5}, pool: gpu, master: {request: {cpu: 0.0001}}}
        """
    )
    layout = Layout(trace)
    assert layout.resources == ("cpu", "memory", "example.com/gpu", "pods")
    assert layout.names == ("node-0", "node-1", "gpu-2")
    assert layout.allocatable.tolist() == [[1500, 2**30, 0, 5]] * 2 + [[4000, 0, 2, 110]]
    assert layout.shapes.request.tolist() == [[500, 0, 0, 1], [500, 0, 0, 1], [1, 0, 0, 1]]
    assert layout.allowed.tolist() == [[True] * 3, [False, False, True], [False, False, True]]
    assert layout.others(trace.jobs[0]) == ((0, 3),)
