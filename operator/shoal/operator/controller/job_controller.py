"""The job controller: one sync reads the cache, carries out the next actions of one job and writes its status."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from shoal.api import ManifestError, TrainingJob
from shoal.api.status import ConditionType, Reason, Status
from shoal.autoscaler.config.types import priority_of
from shoal.autoscaler.loop import Autoscaler, JobDecision
from shoal.kube import Kube, KubeError, KubeFencedError
from shoal.operator.cache.cache import Cache
from shoal.operator.controller.demands import Demands, autoscaled_condition, planned_nodes
from shoal.operator.controller.executor import Executor
from shoal.operator.controller.job_memory import JobMemory
from shoal.operator.controller.missing_pods import MissingPodDiagnostics
from shoal.operator.controller.preflight import Preflight
from shoal.operator.controller.start_diagnostics import StartDiagnostics
from shoal.operator.core import run_policy
from shoal.operator.core.accepted_spec import ACCEPTED_KEY, text_of
from shoal.operator.core.reconcile import (
    Action,
    DeletePod,
    ForgetRecords,
    MakeSecrets,
    Observed,
    in_pods,
    reconcile,
)
from shoal.operator.etcd.secrets import DerivedSecrets
from shoal.operator.resources.pods import JobIdentity, label
from shoal.operator.status import events
from shoal.operator.status.conditions import SILENT_AFTER, STALLED_AFTER, PodProblem, status_of
from shoal.operator.status.facts import Facts
from shoal.operator.status.reasons import reason_of
from shoal.operator.status.writer import StatusWriter
from shoal.store import JobKeys

__all__ = ["JobController"]

_SECRETS_SECONDS: Final = 60.0
"""Interval at which Secrets are ensured while a pod does not start: Secrets are not watched, so a deletion is not seen."""
_RECHECK_SECONDS: Final = 20.0
"""Interval at which a refused spec is checked again: its cause may be fixed without any event that the operator receives."""
_TERMINATING: Final = "because it is being terminated"
"""Part of the API server's error for a create request in a namespace that is being deleted."""
_NO_CONFIG_SECONDS: Final = 20.0
"""Interval between syncs while there is no valid AutoscalerConfig: the number of trainers is not decided then."""
_PLAN_SECONDS: Final = 5.0
"""How long after the first sync of a job its first plan is awaited without a status, however old the job is."""
_UNDECIDED: Final = "waits for the autoscaler's next plan"


@dataclass(frozen=True)
class _View:
    """A job's manifest and its last status, at the time `now`."""

    manifest: Mapping[str, Any]
    before: Status
    now: datetime

    @property
    def uid(self) -> str:
        return str(self.manifest["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.manifest["metadata"].get("generation", 0))


class JobController:
    """Reconciles jobs, one sync of one job at a time.

    Args:
        cache: The cache of the cluster and of etcd.
        kube: Client of the API server.
        executor: Carries out actions.
        status_writer: Writes statuses and events.
        etcd: Endpoint of etcd for the masters.
        secrets: Derives the content of jobs' Secrets.
        read_end: Reads a job's end from etcd into the cache: the watch of etcd may lag.
        classes: PriorityClasses of servers, of minimum trainers and of surplus trainers. None: the pods have none.
        autoscaler: Decides how many trainers each job has. None: `spec.trainer.replicas`, or else the minimum.
    """

    def __init__(
        self,
        cache: Cache,
        kube: Kube,
        executor: Executor,
        status_writer: StatusWriter,
        *,
        etcd: str,
        secrets: DerivedSecrets,
        read_end: Callable[[JobKeys], Awaitable[None]],
        classes: tuple[str, str, str] | None = None,
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self._cache = cache
        self._kube = kube
        self._preflight = Preflight(kube)
        self._missing_pods = MissingPodDiagnostics(kube)
        self._start_diagnostics = StartDiagnostics(kube)
        self._executor = executor
        self._status_writer = status_writer
        self._etcd = etcd
        self._secrets = secrets
        self._read_end = read_end
        self._classes = classes
        self._autoscaler = autoscaler
        self._demands = Demands(autoscaler)
        self._memory: dict[str, JobMemory] = {}

    async def sync(self, uid: str) -> float | None:
        """Bring one job one step closer to its desired state.

        Returns:
            Seconds until the next sync if nothing changes; None: no further sync is needed.

        Raises:
            KubeError: The API server refused a request, or was unreachable for longer than the client retries.
            StoreError: etcd refused a request, or was unreachable.
        """
        manifest = self._cache.jobs.get(uid)
        if manifest is None or manifest["metadata"].get("deletionTimestamp") is not None:
            self._memory.pop(uid, None)
            self._status_writer.forget(uid)
            self._preflight.forget(uid)
            self._missing_pods.forget(uid)
            self._start_diagnostics.forget(uid)
            self._demands.forget(uid)
            return None
        memory = self._memory.setdefault(uid, JobMemory())
        view = _View(manifest, self._status_writer.last_status(manifest), datetime.now(UTC))
        job, refused = await self._job_in_force(view, memory)
        try:
            identity = self._identity(uid, job) if job is not None else None
        except ManifestError as error:
            job, identity, refused = None, None, refused or f"{Reason.UNKNOWN_PRIORITY}: {error}"
        if job is None or identity is None:
            again = await self._report(view, None, self._cache.observed(uid, template=""), refused=refused)
            return min(again or _RECHECK_SECONDS, _RECHECK_SECONDS)
        due = run_policy.removal_due(job, view.before)
        if due is not None and view.now >= due:
            name, namespace = job.metadata.name, job.metadata.namespace
            await self._kube.delete("TrainingJob", name, namespace=namespace, uid=uid)
            return None
        seen = await self._observe(uid, job, memory.render(job, identity).template)
        failed = run_policy.end_of(view.before)
        requested = run_policy.retry_requested(view.manifest, view.before)
        # Before that the failed job is stopped as any other: a controller that still has replicas would create pods again.
        stopped = not (seen.servers or seen.masters) and all(pod.ended for pod in seen.trainers)
        if requested and failed is not None and failed.type == ConditionType.FAILED and stopped:
            return await self._retry(view, job, identity, seen, memory, requested)
        seen = self._add_end(view, job, seen, memory)
        if seen.lost:
            return await self._restart(view, job, identity, seen, memory)
        later = await self._act_and_report(view, job, identity, seen, memory, refused=refused)
        return min(later or _RECHECK_SECONDS, _RECHECK_SECONDS) if refused else later

    async def _job_in_force(self, view: _View, memory: JobMemory) -> tuple[TrainingJob | None, str]:
        """Return the job in force, and why the newest spec is refused; None: no spec was ever accepted."""
        try:
            job = memory.newest(view.manifest)
        except ManifestError as error:
            refused = str(error)
        else:
            try:
                identity = self._identity(view.uid, job)
            except ManifestError as error:
                refused = f"{Reason.UNKNOWN_PRIORITY}: {error}"
            else:
                seen = self._cache.observed(view.uid, template=memory.render(job, identity).template)
                refused = await self._refusal(view, job, identity, seen, memory)
            if not refused:
                if memory.agreed is not job:
                    memory.agreed, memory.accepted = job, text_of(job)
                return job, ""
        if memory.accepted is None:
            memory.accepted = await self._read_accepted(view)
        return memory.in_force(view.manifest), refused

    async def _read_accepted(self, view: _View) -> str | None:
        """Read the spec that an earlier operator process accepted from the job's ConfigMap."""
        metadata = view.manifest["metadata"]
        name, namespace = f"{metadata['name']}-job", metadata["namespace"]
        found = await self._kube.get("ConfigMap", name, namespace=namespace)
        if found is None or label(found, "uid") != view.uid:
            return None
        return (found.get("data") or {}).get(ACCEPTED_KEY)

    async def _observe(self, uid: str, job: TrainingJob, template: str) -> Observed:
        """Return what is observed of a job; where a trainer has ended without a drain, the job's end is read from etcd first."""
        seen = self._cache.observed(uid, template=template)
        drain = seen.desired.drain if seen.desired is not None else ()
        undrained = any(pod.ended and pod.index not in drain for pod in seen.trainers)
        if not undrained or seen.ended is not None or not self._cache.facts(uid).etcd:
            return seen
        await self._read_end(JobKeys(job.metadata.namespace, job.metadata.name, uid))
        return self._cache.observed(uid, template=template)

    def _identity(self, uid: str, job: TrainingJob) -> JobIdentity:
        """Return the job's identity on this cluster.

        Raises:
            ManifestError: The AutoscalerConfig does not define the job's priority.
        """
        secrets, classes = self._secrets, self._classes
        selector: tuple[tuple[str, str], ...] = ()
        if self._autoscaler is not None and not self._autoscaler.is_unconfigured:
            config = self._autoscaler.config
            of = priority_of(config, job.spec.priority)
            classes = (of.servers, of.minimum, of.surplus)
            selector = tuple(sorted(config.node_selector.items()))
        return JobIdentity(
            uid=uid,
            etcd=self._etcd,
            guarded=secrets.guarded,
            token=secrets.versions["token"],
            login=secrets.versions["etcd"],
            classes=classes,
            selector=selector,
        )

    async def _act_and_report(
        self, view: _View, job: TrainingJob, identity: JobIdentity, seen: Observed, memory: JobMemory, *, refused: str
    ) -> float | None:
        overdue, drain_timeout = memory.overdue(seen.desired.drain if seen.desired is not None else [])
        renewal = self._renewal(view, memory)
        seen = replace(seen, secrets=renewal is None or renewal > 0)
        memory.report_token_change(seen.token, identity.token, has_claims=not in_pods(job))
        backing_off = memory.backing_off(seen, time.monotonic())
        decided = self._decide(view, job, identity, seen, memory)
        no_config = self._autoscaler is not None and self._autoscaler.is_unconfigured
        if decided is None and not no_config and not seen.applied and time.monotonic() - memory.since < _PLAN_SECONDS:
            return _PLAN_SECONDS  # the autoscaler enqueues the job when its plan is ready
        decision = decided or _as_before(view, seen)
        autoscaled = autoscaled_condition(self._autoscaler, job)
        facts = replace(self._facts(view, memory), reason=decision.reason, autoscaled=autoscaled)
        if decided is not None:
            facts = replace(facts, planned=self._is_planned(job, seen))
        actions: list[Action] = []
        if facts.etcd and decided is not None:  # without etcd no trainer can be drained before it is deleted
            actions = reconcile(
                job,
                identity,
                seen,
                trainers=decision.now,
                overdue=overdue,
                backing_off=backing_off,
                places=planned_nodes(decision),
                waits=not decision.trainers,
                rendered=memory.render(job, identity),
            )
        memory.unwritten += [events.lost(each.name) for each in actions if isinstance(each, DeletePod) and each.force]
        actions, repair = memory.repairs_due(actions)
        failed = await self._executor.carry_out(job, identity, actions)
        memory.record_pods(seen, actions, failed)
        if any(isinstance(action, MakeSecrets) for action in actions):
            memory.secrets = time.monotonic()
            renewal = self._renewal(view, memory)
        problems, recheck = await self._missing_pods.check(job, identity, seen, waits=not decision.trainers)
        slow, starting = await self._start_diagnostics.check(
            view.uid, job.metadata.namespace, self._cache.pods(view.uid)
        )
        problems = [*(each.problem for each in failed), *problems, *slow]
        full = next((each.message for each in problems if each.known is Reason.QUOTA_EXCEEDED), "")
        facts = replace(facts, reason=f"the namespace's quota is full: {full}") if full else facts
        later = await self._report(
            view, job, seen, facts=facts, refused=refused, problems=problems, desired=decision.trainers
        )
        if any(_TERMINATING in str(each.error) for each in failed):
            return _RECHECK_SECONDS  # its namespace is being deleted: that is no failed sync
        if failed:
            raise ExceptionGroup("some actions failed", [each.error for each in failed])
        again = _NO_CONFIG_SECONDS if no_config else None
        pod_back_off = min(backing_off.values(), default=None)
        due = self._due(view, job, facts)
        return _soonest(view.now, drain_timeout, renewal, recheck, starting, later, again, pod_back_off, repair, due)

    async def _restart(
        self, view: _View, job: TrainingJob, identity: JobIdentity, seen: Observed, memory: JobMemory
    ) -> float | None:
        """Remove all pods, then all records: a master that finds neither starts the job from the beginning."""
        for actions in (self._pod_deletions(view.uid), [ForgetRecords()]):
            await self._carry_out_all(job, identity, actions, "the job cannot be restarted")
        self._cache.forgotten(view.uid)
        memory.failures = None
        count = (view.before.restarts or 0) + 1
        memory.unwritten.append(events.restarted(count, job.spec.run_policy.backoff_limit))
        facts = replace(self._facts(view, memory), restarts=count)
        later = await self._report(view, job, seen, facts=facts)
        return min(later or _RECHECK_SECONDS, 1.0)

    async def _retry(
        self, view: _View, job: TrainingJob, identity: JobIdentity, seen: Observed, memory: JobMemory, requested: str
    ) -> float | None:
        """Run a failed job again: without its pods and its outcome the master resumes it from its snapshots, if it has claims."""
        there = bool(self._cache.pods(view.uid))
        has_claims = not in_pods(job)
        actions = self._pod_deletions(view.uid) if there else [ForgetRecords(outcome_only=has_claims)]
        await self._carry_out_all(job, identity, actions, "the job cannot be retried")
        if there:
            return 1.0  # a master that still runs would write its outcome again
        self._cache.forgotten(view.uid, outcome_only=has_claims)
        self._memory[view.uid] = memory = JobMemory(accepted=memory.accepted, agreed=memory.agreed)
        memory.unwritten.append(events.retried(requested, has_claims=has_claims))
        view = replace(view, before=run_policy.retried(view.before))
        seen = replace(seen, ended=None, saved=False, published=None)
        await self._report(view, job, seen, facts=replace(self._facts(view, memory), retried=requested))
        return 0.1

    def _pod_deletions(self, uid: str) -> list[Action]:
        return [DeletePod(pod.name, pod.uid) for pod in self._cache.pods(uid) if not pod.deleting]

    async def _carry_out_all(
        self, job: TrainingJob, identity: JobIdentity, actions: Sequence[Action], problem: str
    ) -> None:
        failed = await self._executor.carry_out(job, identity, actions)
        if failed:
            raise ExceptionGroup(problem, [each.error for each in failed])

    def _decide(
        self, view: _View, job: TrainingJob, identity: JobIdentity, seen: Observed, memory: JobMemory
    ) -> JobDecision | None:
        """Return how many trainers the job has, and on which nodes they stay; None: no plan includes the job yet."""
        if self._autoscaler is not None and self._autoscaler.is_unconfigured:
            return None
        needs_trainers = not job.spec.suspend and seen.ended is None
        self._demands.report(
            view.manifest, job, identity, needs_trainers=needs_trainers, most=memory.most(time.monotonic())
        )
        if self._autoscaler is None or not self._is_planned(job, seen):
            desired = job.desired_trainers()
            return JobDecision(trainers=desired, now=desired, kept=None, reason="")
        return self._autoscaler.decision(view.uid)

    def _is_planned(self, job: TrainingJob, seen: Observed) -> bool:
        """Return whether the autoscaler decides the job's number of trainers."""
        needs_trainers = not job.spec.suspend and seen.ended is None
        return self._autoscaler is not None and self._autoscaler.acts and needs_trainers

    def _renewal(self, view: _View, memory: JobMemory) -> float | None:
        """Return the seconds until the job's Secrets are ensured again; 0: now; None: no pod waits for them."""
        if memory.secrets is None:
            return 0.0
        if not self._cache.starting(view.uid):
            return None
        return max(0.0, memory.secrets + _SECRETS_SECONDS - time.monotonic())

    # --- Preconditions ---

    async def _refusal(
        self, view: _View, job: TrainingJob, identity: JobIdentity, seen: Observed, memory: JobMemory
    ) -> str:
        """Return why the spec is not accepted; empty: it is."""
        accepted = next((each for each in view.before.conditions if each.type == ConditionType.ACCEPTED), None)
        known = (
            view.before.observed_generation == view.generation and accepted is not None and accepted.status == "True"
        )
        if known or memory.checked == view.generation:
            return ""
        if view.before.start_time is None:
            left = self._cache.predecessors(view.uid)
            if left:
                more = f" and {len(left) - 3} more" if len(left) > 3 else ""
                here = f"shoal.dev/job={job.metadata.name},shoal.dev/uid!={view.uid}"
                kinds = "deployment,statefulset,service,serviceaccount,configmap,secret,pdb,pod,pvc"
                fix = f"kubectl delete {kinds} --namespace={job.metadata.namespace} --selector='{here}'"
                return (
                    f"{Reason.PREDECESSOR_LEAVING}: waits for {', '.join(left[:3])}{more} to be deleted; to delete "
                    f"objects left by --cascade=orphan: {fix}"
                )
        try:
            found = await self._preflight.refused(job, identity, seen)
        except KubeFencedError:
            raise
        except KubeError as error:
            return f"{Reason.NOT_CHECKED}: {error}"
        if not found:
            memory.checked = view.generation
        return found

    def _add_end(self, view: _View, job: TrainingJob, seen: Observed, memory: JobMemory) -> Observed:
        """Add the end that the status has, or that the run policy decides now."""
        ended = run_policy.recorded_end(view.before)
        if ended is not None:
            return replace(seen, ended=ended, saved=seen.saved or ended.state == "Complete")
        if seen.ended is not None and in_pods(job) and (view.before.restarts or 0) < job.spec.run_policy.backoff_limit:
            reason, _ = reason_of(ConditionType.FAILED, seen.ended.reason)
            if seen.ended.state == "Failed" and reason is Reason.SNAPSHOTS_LOST:
                return replace(seen, ended=None, lost=True)
        if seen.ended is not None or not self._cache.facts(view.uid).etcd:
            return seen  # while etcd is unreachable it is unknown whether trainers ended because the job is complete
        ends = self._cache.ends(view.uid)
        before = memory.failures or run_policy.ConsecutiveFailures(
            view.before.failures or 0, view.before.last_failure_time
        )
        committed, now = self._cache.committed(view.uid), time.monotonic()
        memory.unwritten += map(events.failed, run_policy.newly_failed(before, ends, known=memory.counted_ends))
        memory.failures = run_policy.count_failures(
            before, ends, known=memory.counted_ends, committed=committed, now=now
        )
        memory.counted_ends = {end.container_id for end in ends}
        refusals = [end for end in ends if end.code == run_policy.REFUSED and not end.container]
        return replace(seen, ended=run_policy.overrun(job, view.before, memory.failures, refusals, view.now))

    def _facts(self, view: _View, memory: JobMemory) -> Facts:
        facts, failures = self._cache.facts(view.uid), memory.failures
        # An annotation of a job that has not failed asks for nothing, also not later.
        if run_policy.end_of(view.before) is None:
            facts = replace(facts, retried=run_policy.retry_requested(view.manifest, view.before) or None)
        if failures is None or (not failures.count and view.before.failures is None):
            return facts
        return replace(facts, failures=failures.count, last_failure=failures.last)

    # --- Status ---

    async def _report(
        self,
        view: _View,
        job: TrainingJob | None,
        seen: Observed,
        *,
        facts: Facts | None = None,
        refused: str = "",
        problems: Sequence[PodProblem] = (),
        desired: int | None = None,
    ) -> float | None:
        after = status_of(
            job,
            generation=view.generation,
            seen=seen,
            desired=desired if desired is not None else job.desired_trainers() if job is not None else 0,
            problems=[*self._cache.problems(view.uid), *problems],
            refused=refused,
            now=view.now,
            before=view.before,
            facts=facts if facts is not None else self._cache.facts(view.uid),
        )
        later = await self._status_writer.write_status(view.manifest, after)
        memory = self._memory[view.uid]
        record_problems = self._cache.record_problems(view.uid)
        memory.unwritten += events.record_problems(memory.record_problems, record_problems)
        memory.record_problems = record_problems
        notes, memory.unwritten = [*memory.unwritten, *events.notes(view.before, after)], []
        await self._status_writer.write_events(view.manifest, notes)
        return later

    def _due(self, view: _View, job: TrainingJob, facts: Facts) -> list[datetime]:
        """Return the times at which the status may change without any event."""
        status = self._status_writer.last_status(view.manifest)
        removal = run_policy.removal_due(job, status)
        if removal is not None:
            return [removal]
        limit, due = job.spec.run_policy.active_deadline_seconds, []
        if status.active_since is not None and limit is not None:
            left = limit - run_policy.active_seconds(status, view.now)
            due.append(view.now + timedelta(seconds=max(0.0, left)))
        if facts.reported_at is not None:
            due.append(facts.reported_at + SILENT_AFTER)
        if status.progress is not None:
            moved, end = status.progress.last_step_time, status.progress.estimated_end
            due += [moved + STALLED_AFTER] if moved is not None else []
            due += [end] if end is not None else []
        return due


def _as_before(view: _View, seen: Observed) -> JobDecision:
    """Keep the number of trainers that an earlier operator process reported or created, until there is a plan."""
    before = view.before.trainers
    there = sum(not (pod.ended or pod.deleting or pod.lost) for pod in seen.trainers)
    desired = max(before.desired if before is not None else 0, there)
    return JobDecision(trainers=desired, now=0, kept=None, reason=_UNDECIDED)


def _soonest(now: datetime, *seconds: float | None | list[datetime]) -> float | None:
    """Return the shortest of some waits; times in the past cause no sync."""
    waits: list[float] = []
    for each in seconds:
        if isinstance(each, list):
            # Times in a status are whole seconds: one second later they have passed in any case.
            waits += [(due - now).total_seconds() + 1.0 for due in each if due > now - timedelta(seconds=1)]
        elif each is not None:
            waits.append(each)
    return max(0.1, min(waits)) if waits else None
