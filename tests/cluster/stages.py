"""The behaviour of kwok's hollow nodes and pods: four stages, written as kwok's Stage objects.

A pod's annotations, in milliseconds, override the defaults:

    hollow.shoal.dev/start-ms    from bound to Ready
    hollow.shoal.dev/run-ms      from Ready to its end; without it a pod runs for ever
    hollow.shoal.dev/exit-code   the exit code of that end (0)
    hollow.shoal.dev/grace-ms    from SIGTERM to its exit, within the grace period of the deletion

A kubelet restarts containers in place; a hollow pod that has ended is not restarted, whatever its restartPolicy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

__all__ = ["HOLLOW_NODE", "LOST", "Stages"]

LOST = "hollow.shoal.dev/lost"
"""The annotation of pods whose node is gone: nothing happens to them any more."""
HOLLOW_NODE = {"kwok.x-k8s.io/node": "fake"}

NODE = """
addresses:
- {type: InternalIP, address: {{ NodeIP | Quote }}}
- {type: Hostname, address: {{ .metadata.name | Quote }}}
conditions:
{{ range NodeConditions }}
- type: {{ .type | Quote }}
  status: {{ .status | Quote }}
  reason: {{ .reason | Quote }}
  message: {{ .message | Quote }}
  lastHeartbeatTime: {{ Now | Quote }}
  lastTransitionTime: {{ Now | Quote }}
{{ end }}
"""

READY = """
phase: Running
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
startTime: {{ Now | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ Now | Quote }}}
{{ end }}
{{ with .spec.initContainers }}
initContainerStatuses:
{{ range . }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {terminated: {exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, finishedAt: {{ Now | Quote }}}}
{{ end }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  started: true
  restartCount: 0
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
"""

COMPLETE = """
{{ $code := or (index .metadata.annotations "hollow.shoal.dev/exit-code") "0" }}
{{ $good := eq $code "0" }}
phase: {{ if $good }}Succeeded{{ else }}Failed{{ end }}
conditions:
{{ range $type := list "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "False", reason: PodCompleted, lastTransitionTime: {{ Now | Quote }}}
{{ end }}
containerStatuses:
{{ $started := .status.startTime }}
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated:
      exitCode: {{ $code }}
      reason: {{ if $good }}Completed{{ else }}Error{{ end }}
      startedAt: {{ $started | Quote }}
      finishedAt: {{ Now | Quote }}
{{ end }}
"""


@dataclass(frozen=True)
class Stages:
    """Delays of hollow pods, in milliseconds."""

    start_ms: int = 0
    grace_ms: int = 0

    def to_yaml(self) -> str:
        """Return the Stage objects as kwok's configuration file."""
        alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
        stages = [
            _stage(
                "node-initialize",
                "Node",
                [
                    {
                        "key": '.status.conditions.[] | select(.type == "Ready") | .status',
                        "operator": "NotIn",
                        "values": ["True"],
                    }
                ],
                {"statusTemplate": NODE},
            ),
            _stage(
                "pod-ready",
                "Pod",
                [alive, {"key": ".status.phase", "operator": "In", "values": ["Pending"]}],
                {"statusTemplate": READY},
                delay=f'{_annotated("start-ms", self.start_ms)} | tostring + "ms"',
            ),
            _stage(
                "pod-complete",
                "Pod",
                [
                    alive,
                    {"key": ".status.phase", "operator": "In", "values": ["Running"]},
                    {"key": '.metadata.annotations["hollow.shoal.dev/run-ms"]', "operator": "Exists"},
                ],
                {"statusTemplate": COMPLETE},
                delay=f'{_annotated("run-ms", 0)} | tostring + "ms"',
            ),
            _stage(
                "pod-delete",
                "Pod",
                [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}],
                {"delete": True},
                # As with a kubelet, the process may take its time, but at most the grace period.
                delay=f"[.metadata.deletionGracePeriodSeconds * 1000, {_annotated('grace-ms', self.grace_ms)}]"
                ' | min | tostring + "ms"',
            ),
        ]
        return yaml.safe_dump_all(stages, sort_keys=False)


def _annotated(name: str, default: int) -> str:
    return f'(.metadata.annotations["hollow.shoal.dev/{name}"] // "{default}" | tonumber)'


def _stage(
    name: str, kind: str, expressions: list[dict[str, Any]], following: dict[str, Any], delay: str = ""
) -> dict[str, Any]:
    here = {"key": f'.metadata.annotations["{LOST}"]', "operator": "DoesNotExist"}
    spec: dict[str, Any] = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": [here, *expressions]},
        "next": following,
    }
    if delay:
        spec["delay"] = {"durationMilliseconds": 0, "durationFrom": {"expressionFrom": delay}}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}
