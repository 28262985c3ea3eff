"""Plays traces of jobs and pods on a simulated cluster, and compares what policies make of them.

``python -m shoal.autoscaler.simulate --trace FILE`` is for people; `simulate` is the same for programs.
"""

from shoal.autoscaler.simulate.engine import Result, Simulation, simulate
from shoal.autoscaler.simulate.measures import Report
from shoal.autoscaler.simulate.policies import POLICIES
from shoal.autoscaler.simulate.rules import Rule, Seen, Trigger, View, Wish
from shoal.autoscaler.simulate.trace import Trace, TraceError, load, loads

__all__ = [
    "POLICIES",
    "Report",
    "Result",
    "Rule",
    "Seen",
    "Simulation",
    "Trace",
    "TraceError",
    "Trigger",
    "View",
    "Wish",
    "load",
    "loads",
    "simulate",
]
