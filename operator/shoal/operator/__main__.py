"""``python -m shoal.operator``: serves the cluster of the kubeconfig, or the one that it runs in."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from shoal.kube import KubeError
from shoal.operator.app import Operator, Settings
from shoal.store import StoreError

log = logging.getLogger("shoal.operator")


def main() -> int:
    """Serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shoal.operator", description="Reconciles TrainingJobs.")
    parser.add_argument("--etcd", required=True, metavar="ENDPOINT", help="etcd, as this process knows it")
    parser.add_argument("--masters-etcd", default="", metavar="ENDPOINT", help="etcd, as masters in pods know it")
    parser.add_argument("--namespace", action="append", default=[], help="serve this one (again: more); default: all")
    parser.add_argument(
        "--priority-classes", nargs=3, metavar=("SERVERS", "MINIMUM", "SURPLUS"), help="of a job's pods; default: none"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    # It tells each event that it hands on.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    settings = Settings(
        etcd=arguments.etcd,
        masters_etcd=arguments.masters_etcd,
        namespaces=tuple(arguments.namespace),
        classes=tuple(arguments.priority_classes) if arguments.priority_classes else None,
    )
    try:
        asyncio.run(_serve(settings))
    except (KubeError, StoreError) as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Operator(settings).run(stop)


if __name__ == "__main__":
    sys.exit(main())
