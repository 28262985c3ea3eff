"""``python -m shoal.operator``: serves the cluster of the kubeconfig, or the one that it runs in."""

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
"""The Lease was lost; the kubelet starts the container again, and it stands by."""

log = logging.getLogger("shoal.operator")


def main() -> int:
    """Serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shoal.operator", description="Reconciles TrainingJobs.")
    parser.add_argument("--etcd", required=True, metavar="ENDPOINT", help="etcd, as this process knows it")
    parser.add_argument(
        "--etcd-credentials", default="", metavar="FOLDER", help="files username, password and (for TLS) ca.crt"
    )
    parser.add_argument("--masters-etcd", default="", metavar="ENDPOINT", help="etcd, as masters in pods know it")
    parser.add_argument("--namespace", action="append", default=[], help="serve this one (again: more); default: all")
    parser.add_argument(
        "--priority-classes", nargs=3, metavar=("SERVERS", "MINIMUM", "SURPLUS"), help="of a job's pods; default: none"
    )
    parser.add_argument(
        "--lease", type=_lease, metavar="NAMESPACE/NAME", help="act only while holding it; default: act"
    )
    parser.add_argument(
        "--autoscaler",
        default="",
        metavar="FILE",
        help="AutoscalerConfig by which jobs move between their bounds; default: each has its pin or its minimum",
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
    await Operator(settings, on_lost=_lost).run(stop)


def tune() -> None:
    """Set this process up for many objects that stay, and for two threads that both have much to do now and then."""
    # What comes by the watches has no cycles, and looking for some in all that is kept takes a tenth of the time.
    gc.set_threshold(50_000, 20, 50)
    # A thread that has waited for the network waits for so long for the other one as well, each time.
    sys.setswitchinterval(0.001)


def _lost(why: str) -> NoReturn:
    """End without another step: no handler, no thread and nothing that waits may act any more."""
    log.critical("%s; this process ends at once, with exit code %d", why, EXIT_LOST)
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
