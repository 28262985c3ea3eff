"""``python -m shoal.operator``: serves the cluster of the kubeconfig, or the cluster that it runs in."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from typing import Final, NoReturn

from shoal.kube import KubeError
from shoal.operator.manager import Operator, OperatorSettings
from shoal.store import StoreError

EXIT_LOST: Final = 3
"""Exit code after the Lease was lost; the kubelet restarts the container, and the new process stands by."""

log = logging.getLogger("shoal.operator")


def main() -> int:
    """Serve until a signal arrives; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shoal.operator", description="Reconciles TrainingJobs.")
    parser.add_argument("--etcd", required=True, metavar="ENDPOINT", help="endpoint of etcd for this process")
    parser.add_argument(
        "--etcd-credentials", default="", metavar="FOLDER", help="files username, password and (for TLS) ca.crt"
    )
    parser.add_argument("--masters-etcd", default="", metavar="ENDPOINT", help="endpoint of etcd for masters in pods")
    parser.add_argument("--namespace", action="append", default=[], help="namespace to serve; repeatable; default: all")
    parser.add_argument(
        "--priority-classes", nargs=3, metavar=("SERVERS", "MINIMUM", "SURPLUS"), help="of jobs' pods; default: none"
    )
    parser.add_argument(
        "--lease", type=_lease, metavar="NAMESPACE/NAME", help="lead only while holding this Lease; default: always"
    )
    parser.add_argument(
        "--autoscaler",
        default="",
        metavar="FILE",
        help="AutoscalerConfig that scales jobs between their bounds; default: a job has its pin or its minimum",
    )
    parser.add_argument("--serve", type=_address, metavar="HOST:PORT", help="probes and metrics; default: none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    tune()
    settings = OperatorSettings(
        etcd=arguments.etcd,
        etcd_credentials=arguments.etcd_credentials,
        masters_etcd=arguments.masters_etcd,
        namespaces=tuple(arguments.namespace),
        classes=tuple(arguments.priority_classes) if arguments.priority_classes else None,
        lease=arguments.lease or "",
        serve=arguments.serve or "",
        autoscaler=arguments.autoscaler,
    )
    try:
        asyncio.run(_serve(settings))
    except (KubeError, StoreError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people
        return 1
    return 0


async def _serve(settings: OperatorSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Operator(settings, on_lost=_exit_lost).run(stop)


def tune() -> None:
    """Tune the process for many long-lived objects, and for two threads that both need the processor."""
    # Objects from watches have no reference cycles, and the default thresholds spend a tenth of the processor time on them.
    gc.set_threshold(50_000, 20, 50)
    # A thread that returns from network I/O waits for up to this interval for the other thread, each time.
    sys.setswitchinterval(0.001)


def _exit_lost(reason: str) -> NoReturn:
    """Exit at once: no handler, no thread and no pending call may act any more."""
    log.critical("%s; this process exits at once, with exit code %d", reason, EXIT_LOST)
    logging.shutdown()
    os._exit(EXIT_LOST)


def _lease(text: str) -> str:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return text


def _address(text: str) -> str:
    _, _, port = text.rpartition(":")
    if not port.isdigit() or ":" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


if __name__ == "__main__":
    sys.exit(main())
