"""``python -m shoal.pserver``: one parameter server of one job."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import torch

from shoal.protocol import environment
from shoal.pserver.service import ServerService
from shoal.tensors.no_compiler import without_compiler
from shoal.tensors.optimizers import import_all
from shoal.transport import auth, file_limits, logs
from shoal.transport.address import resolve

log = logging.getLogger("shoal.pserver")


def process_age() -> float:
    """Return the seconds since this process started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shoal.pserver", description="One parameter server of a job.")
    parser.add_argument(
        "--listen",
        action="append",
        required=True,
        help="unix:///path or tcp://host:port; repeatable, nearest first",
    )
    parser.add_argument(
        "--advertise",
        action="append",
        help="address at which trainers connect, behind a proxy or NAT (default: the addresses of --listen)",
    )
    parser.add_argument("--snapshots", type=Path, required=True, help="directory of this server's snapshots")
    parser.add_argument("--probe", default="", help="tcp://host:port of the liveness probe (default: none)")
    arguments = parser.parse_args()
    logs.set_up()
    file_limits.allow_all()
    without_compiler()
    import_all()
    log.info("starting; what it imports took %.2f s", process_age())
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        token = auth.Token.read(environment.text(environment.TOKEN_FILE))
        index = environment.number(environment.INDEX)
        service = ServerService(
            environment.text(environment.MASTER),
            identity=auth.Identity(role="pserver", index=index, life=auth.new_life()),
            token=token,
            uid=environment.text(environment.UID),
            folder=arguments.snapshots,
        )
        for address in arguments.advertise or ():
            resolve(address)
        return service.run(
            arguments.listen,
            advertise=arguments.advertise,
            probe=arguments.probe,
            ready=lambda addresses: log.info("listening at %s", ", ".join(addresses)),
        )
    except (OSError, ValueError) as error:
        log.error("the parameter server cannot start: %s", error)  # noqa: TRY400 - a message for users
        return environment.EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
