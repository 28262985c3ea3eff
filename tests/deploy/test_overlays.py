"""Every overlay on a real API server, with the pods that controllers create from it."""

from __future__ import annotations

import secrets

import pytest

from tests.cluster.control_plane import KubectlError
from tests.deploy.rendered import DEPLOY, OVERLAYS, SYSTEM, arguments, find, overlay, render, templates

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def stands(cluster, name: str, wanted: int) -> None:
    """Wait until this many pods of this name are Ready; hollow nodes report nothing more."""

    def ready() -> bool:
        pods = cluster.get("pods", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={name}")["items"]
        conditions = [each for pod in pods for each in pod["status"].get("conditions", [])]
        return sum(each["type"] == "Ready" and each["status"] == "True" for each in conditions) == wanted

    cluster.until(ready, f"{wanted} pods of {name}")


def versions(cluster, folder) -> dict[str, int | str]:
    """Return what changes with each object's spec: its generation where it has one, as controllers write statuses."""
    found = cluster.get("-k", str(folder))["items"]
    return {
        f"{each['kind']}/{each['metadata']['name']}": each["metadata"].get("generation")
        or each["metadata"]["resourceVersion"]
        for each in found
        if each["kind"] not in {"Namespace", "Service"}
    }


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_taken_its_pods_run_and_a_second_time_changes_nothing(cluster, name):
    folder = DEPLOY / "overlays" / name
    assert cluster.apply(folder)[1] == ""
    members = find(overlay(name), "StatefulSet", "shoal-etcd")["spec"]["replicas"]
    for pods, wanted in (("shoal-operator", 2), ("shoal-etcd", members), ("shoal-setup", 1)):
        stands(cluster, pods, wanted)
    before = versions(cluster, folder)
    assert cluster.apply(folder)[1] == ""
    assert versions(cluster, folder) == before
    assert len(before) > 20


def test_what_runs_now_and_then_is_admitted_too(cluster, tmp_path):
    (tmp_path / "kustomization.yaml").write_text(user_overlay(tmp_path, "etcd-backup"))
    cluster.apply(tmp_path)
    for name in ("shoal-etcd-defragment", "shoal-etcd-backup"):
        run = f"{name}-{secrets.token_hex(3)}"
        cluster.kubectl("create", "job", run, f"--from=cronjob/{name}", "-n", SYSTEM)
        cluster.until(lambda run=run: cluster.get("pods", "-n", SYSTEM, "-l", f"job-name={run}")["items"], run)
        cluster.kubectl("delete", "job", run, "-n", SYSTEM)


@pytest.mark.parametrize(("restored", "name"), [("one", "default"), ("three", "ha-etcd")])
def test_a_restored_member_is_what_the_overlay_will_start(cluster, restored, name):
    wanted, found = overlay(name), render(DEPLOY / "restore" / restored)
    spec = find(wanted, "StatefulSet", "shoal-etcd")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    (members,) = [each["value"] for each in container["env"] if each["name"] == "MEMBERS"]
    for number in range(spec["replicas"]):
        made = arguments(found, f"shoal-etcd-restore-{number}")
        started = [
            each.replace("$(MEMBERS)", members).replace("$(MEMBER)", f"shoal-etcd-{number}")
            for each in container["args"]
        ]
        known = ("--name", "--data-dir", "--initial-cluster", "--initial-advertise-peer-urls")
        assert [each for each in sorted(made) if each.startswith(known)] == [
            each for each in sorted(started) if each.startswith(known) and "-state" not in each
        ]
        claim = find(found, "PersistentVolumeClaim", f"data-shoal-etcd-{number}")
        assert claim["spec"] == spec["volumeClaimTemplates"][0]["spec"]
    cluster.apply(DEPLOY / "overlays" / "default")
    assert cluster.apply(DEPLOY / "restore" / restored)[1] == ""
    jobs = [each["metadata"]["name"] for each in found if each["kind"] == "Job"]
    for job in jobs:
        cluster.until(lambda job=job: cluster.get("pods", "-n", SYSTEM, "-l", f"job-name={job}")["items"], job)
    cluster.kubectl("delete", "job", *jobs, "-n", SYSTEM)


def test_an_unrestricted_pod_is_refused_in_their_namespace(cluster):
    cluster.apply(DEPLOY / "overlays" / "default")
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        cluster.kubectl("run", "x", "--image=x", "-n", SYSTEM)


def user_overlay(folder, *components: str) -> str:
    """Return a user's own kustomization in another folder."""
    up = "../" * (len(folder.resolve().parts) - 1)
    lines = [f"- {up}{str(DEPLOY)[1:]}/components/{each}" for each in components]
    return "\n".join(
        [
            "apiVersion: kustomize.config.k8s.io/v1beta1",
            "kind: Kustomization",
            "resources:",
            f"- {up}{str(DEPLOY)[1:]}/overlays/default",
            "components:",
            *lines,
        ]
    )


def test_every_image_can_be_replaced_in_one_place(tmp_path):
    images = "images:\n- {name: example.org/shoal/operator, newName: r.test/o, newTag: '2'}\n"
    images += "- {name: gcr.io/etcd-development/etcd, newName: r.test/e, newTag: '3'}\n"
    (tmp_path / "kustomization.yaml").write_text(f"{user_overlay(tmp_path, 'etcd-backup')}\n{images}")
    found = {
        name: {each["image"] for each in template["spec"]["containers"]}
        for name, template in templates(render(tmp_path)).items()
    }
    etcd, ours = {"r.test/e:3"}, {"r.test/o:2"}
    assert found == {
        "shoal-etcd": etcd, "shoal-etcd-defragment": etcd, "shoal-etcd-backup": etcd,
        "shoal-operator": ours, "shoal-setup": ours,
    }  # fmt: skip


def test_a_private_registry_serves_every_account(tmp_path):
    accounts = [each for each in overlay("private-registry") if each["kind"] == "ServiceAccount"]
    assert {each["metadata"]["name"] for each in accounts} == {"shoal-operator", "shoal-setup", "shoal-etcd"}
    assert all(each["imagePullSecrets"] == [{"name": "shoal-pull"}] for each in accounts)


def test_monitors_policies_and_services_name_what_pods_have(tmp_path):
    (tmp_path / "kustomization.yaml").write_text(user_overlay(tmp_path, "pod-monitor"))
    objects = render(tmp_path)
    pods = {
        template["metadata"]["labels"]["app.kubernetes.io/name"]: {
            port["name"] for each in template["spec"]["containers"] for port in each.get("ports", [])
        }
        for template in templates(objects).values()
    }
    seen = []
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if each["kind"] not in {"PodMonitor", "NetworkPolicy", "Service", "PodDisruptionBudget"} or not selector:
            continue
        name = (selector.get("matchLabels") or selector)["app.kubernetes.io/name"]
        ports = [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
        ports += [port["port"] for port in spec.get("podMetricsEndpoints", [])]
        ports += [port["targetPort"] for port in spec.get("ports", [])]
        assert set(ports) <= pods[name], each["metadata"]["name"]
        seen.append(each["kind"])
    assert set(seen) == {"PodMonitor", "NetworkPolicy", "Service", "PodDisruptionBudget"}


def test_etcd_is_reached_only_by_pods_that_need_it():
    objects = overlay("default")
    clients = {
        name
        for name, template in templates(objects).items()
        if template["metadata"]["labels"].get("shoal.dev/etcd-client") == "true"
    }
    assert clients == {"shoal-operator", "shoal-setup", "shoal-etcd-defragment"}
    policy = find(objects, "NetworkPolicy", "shoal-etcd")["spec"]["ingress"][0]
    assert policy["from"][1]["podSelector"]["matchLabels"] == {"shoal.dev/role": "master"}


def test_the_lowest_class_preempts_nothing():
    objects = overlay("default")
    classes = {each["metadata"]["name"]: each for each in objects if each["kind"] == "PriorityClass"}
    names = ["shoal-servers", "shoal-minimum", "shoal-surplus"]
    values = [classes.pop(name)["value"] for name in names]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 3
    assert all(-10 <= value < 0 for value in values)
    assert all(each["preemptionPolicy"] == "Never" for each in objects if each["kind"] == "PriorityClass")
    assert not classes
    args = find(objects, "Deployment", "shoal-operator")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--priority-classes") + 1 :][:3] == names
