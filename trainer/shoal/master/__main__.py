"""``python -m shoal.master``: the master process of one job."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shoal.api import TrainingJob, load
from shoal.master.core import MasterCore
from shoal.master.record_log import RecordLog
from shoal.master.service import MasterService
from shoal.master.state.job import JobState, MasterSettings
from shoal.master.state.records import Records
from shoal.protocol import environment
from shoal.store import Credentials, Event, JobKeys, Listing, Store, StoreError, StoreRefusedError
from shoal.transport import auth, file_limits, logs
from shoal.transport.address import listen, publish

log = logging.getLogger("shoal.master")

LEASE_SECONDS = 10.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shoal.master", description="The master of one TrainingJob.")
    parser.add_argument("--manifest", required=True, help="the TrainingJob, as YAML or JSON")
    parser.add_argument("--etcd", required=True, help="etcd's host:port; several with commas between")
    parser.add_argument(
        "--etcd-credentials",
        metavar="FOLDER",
        help="folder with the files username, password and (for TLS) ca.crt, if etcd requires them",
    )
    parser.add_argument("--listen", required=True, help="unix:///path or tcp://host:port")
    parser.add_argument("--probe", help="tcp://host:port of the liveness probe; default: none")
    parser.add_argument("--address-file", type=Path, help="file to which the master's address is written")
    parser.add_argument(
        "--lease-seconds",
        type=float,
        default=LEASE_SECONDS,
        help="a member that was silent for longer is disconnected (default 10)",
    )
    return parser.parse_args()


def settings_of(job: TrainingJob, *, lease_seconds: float) -> MasterSettings:
    """Return the master's settings from a manifest."""
    spec = job.spec
    return MasterSettings(
        name=job.metadata.name,
        epochs=spec.epochs,
        seed=spec.seed,
        servers=job.servers,
        checkpoint_seconds=spec.checkpoint.interval.seconds,
        checkpoint_keep=spec.checkpoint.keep,
        output=spec.output.path if spec.output is not None else "",
        lease_seconds=lease_seconds,
        step_seconds=spec.run_policy.step_timeout.seconds,
    )


def _new_grant() -> int:
    return secrets.randbits(62) + 1


def main() -> int:
    """Become the job's master and serve it; return the exit code."""
    arguments = _arguments()
    logs.set_up()
    file_limits.allow_all()
    try:
        manifest = load(arguments.manifest)
        token = auth.Token.read(environment.text(environment.TOKEN_FILE))
        uid = environment.text(environment.UID)
        # Before it leads: a master that cannot listen must not depose one that can.
        stream, address = listen(arguments.listen)
        probe = listen(arguments.probe)[0] if arguments.probe else None
    except (OSError, ValueError) as error:
        log.error("the master cannot start: %s", error)  # noqa: TRY400 - a message for people
        return environment.EXIT_REFUSED
    keys = JobKeys(namespace=manifest.metadata.namespace, name=manifest.metadata.name, uid=uid)
    records = Records()
    service: list[MasterService] = []

    def on_etcd_problem(text: str) -> None:
        for running in service:
            running.on_etcd_problem(text)

    try:
        store = _connect(arguments, keys, on_etcd_problem)
        record_log = RecordLog(store, keys, address=address)
        etcd = _etcd(store)
        records.load(record_log.lead())
    except StoreError as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people
        return environment.EXIT_NO_ETCD
    except ValueError as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people
        return environment.EXIT_REFUSED
    job = JobState(
        settings=settings_of(manifest, lease_seconds=arguments.lease_seconds),
        records=records,
        generation=record_log.generation,
        new_grant=_new_grant,
        now=time.monotonic(),
        clock=time.monotonic,
        wall=time.time,
    )
    job.event(f"the master is up (generation {record_log.generation}, {etcd})")
    gc.freeze()

    def ready() -> None:
        log.info("listening at %s", address)
        if arguments.address_file is not None:
            publish(arguments.address_file, address)

        follow(store, keys.desired, service[0].on_desired_state)

    async def serve() -> int:
        master = MasterCore(job, etcd=etcd)
        service.append(MasterService(master, record_log, identity=_identity(), token=token, uid=uid))
        return await service[0].run(stream, ready=ready, probe=probe)

    return asyncio.run(serve())


def follow(store: Store, key: str, on_value: Callable[[bytes | None], None]) -> None:
    """Call ``on_value`` with a key's value, at once and at each change, on a thread of the store."""

    def reset(listing: Listing, _: str) -> None:
        on_value(next((pair.value for pair in listing.pairs if pair.key == key), None))

    def changed(events: list[Event]) -> None:
        for event in events:
            if event.key == key:
                on_value(event.value)

    store.watch(key, from_revision=None, on_events=changed, on_reset=reset)


def _connect(arguments: argparse.Namespace, keys: JobKeys, on_problem: Callable[[str], None]) -> Store:
    folder = arguments.etcd_credentials
    credentials = Credentials.read(folder) if folder is not None else None
    return Store.connect(
        arguments.etcd, prefix=keys.prefix, credentials=credentials, timeout_seconds=20, on_error=on_problem
    )


def _etcd(store: Store) -> str:
    """Return name and version of the etcd; later versions of etcd report their version to root only."""
    try:
        status = store.status()
    except StoreRefusedError:
        return "etcd"
    if status.warning:
        log.warning("%s", status.warning)
    return f"etcd {status.version}"


def _identity() -> auth.Identity:
    return auth.Identity(role="master", index=0, life=auth.new_life())


if __name__ == "__main__":
    sys.exit(main())
