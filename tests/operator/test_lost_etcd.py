"""Etcd is lost for good, as when the operator's namespace is deleted and reinstalled: jobs continue and report the loss."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def test_a_replaced_etcd_is_reported_once_and_all_processes_get_its_token(world):
    kept, loose = world.job("kept"), world.job("loose")
    kept.apply(parameterServer=world.claims())
    loose.apply()
    before = {}
    for job in (kept, loose):
        job.at_work([0, 1])
        before[job.name] = job.pod_uids()
    world.end()
    world.etcd.wipe()
    world.start()
    kept.has_event("EtcdLost", "the job resumes from there")
    loose.has_event("EtcdLost", "spec.parameterServer.emptyDir", "the job begins again")
    for job in (kept, loose):
        job.until(lambda job=job: not job.pod_uids() & before[job.name], "a new pod of each process")
        job.at_work([0, 1])
        assert [reason for reason, _ in job.events()].count("EtcdLost") == 1
        after = job.pod_uids()
        world.end()
        world.start()
        job.at_work([0, 1])
        assert [reason for reason, _ in job.events()].count("EtcdLost") == 1
        assert job.pod_uids() == after, "the next operator replaces nothing"
