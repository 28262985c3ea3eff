"""The simulator: runs traces of jobs and pods on a simulated cluster, and compares scaling policies.

``python -m shoal.simulator --trace FILE`` is the command line; `simulate` is the function.
"""

from shoal.simulator.measures import SimulationReport
from shoal.simulator.policies.registry import POLICIES
from shoal.simulator.policies.rules import ObservedWorld, PolicyDecision, PolicyView, Rule, Trigger
from shoal.simulator.trace import Trace, TraceError, load, loads
from shoal.simulator.world.engine import Result, Simulation, simulate

__all__ = [
    "POLICIES",
    "ObservedWorld",
    "PolicyDecision",
    "PolicyView",
    "Result",
    "Rule",
    "Simulation",
    "SimulationReport",
    "Trace",
    "TraceError",
    "Trigger",
    "load",
    "loads",
    "simulate",
]
