"""The Helm chart on a real API server: installed, upgraded, rolled back, removed, and twice in one cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane, KubectlError
from tests.deploy.helm import CHART, Helm, HelmError, nested
from tests.deploy.rendered import DEPLOY, ROOT, SYSTEM
from tests.deploy.test_manual import section

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ARGUMENTS = (str(CHART), "--create-namespace", "--wait", "--timeout", "120s")
CRD = "crd/trainingjobs.shoal.dev"
ALL_KINDS = (
    "deployments,statefulsets,jobs,cronjobs,services,serviceaccounts,roles,rolebindings,networkpolicies,configmaps,"
    "poddisruptionbudgets,persistentvolumeclaims"
)
CLUSTER_KINDS = "crds,clusterroles,clusterrolebindings,priorityclasses"
SECOND = {
    "scope": {"namespaces": ["team-b"], "createNamespaces": True},
    "crds": {"install": False}, "priorityClasses": {"create": False}, "userRoles": {"create": False},
}  # fmt: skip
"""Values of a second release."""


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory):
    """Provide a control plane for these tests only, as a release owns cluster-scoped objects."""
    with ControlPlane(tmp_path_factory.mktemp("helm-cluster")) as made:
        made.add_nodes(2)
        made.add_volumes(20, size="8Gi")
        yield made


@pytest.fixture
def helm(own_cluster, tmp_path):
    """Provide Helm; what it has installed is gone after the test but for the definition of TrainingJobs."""
    helm = Helm(tmp_path / "helm", own_cluster.kubeconfig)
    yield helm
    for each in json.loads(helm.run("list", "--all", "--all-namespaces", "--output", "json")):
        helm.run("uninstall", each["name"], "--namespace", each["namespace"], "--wait")
    # The definition stays and belongs to the next installation, too, as its release has the same name and namespace.
    if own_cluster.kubectl("get", CRD, "--ignore-not-found"):
        own_cluster.kubectl("delete", "trainingjobs", "--all", "--all-namespaces", "--timeout=60s")
    # A claim goes after its pods; the next etcd would otherwise begin with a claim that is being deleted.
    own_cluster.kubectl("delete", "persistentvolumeclaims", "--all", "--all-namespaces", "--timeout=120s")


def install(helm, namespace=SYSTEM, *more, values=None, name="shoal"):
    return helm.run("install", name, *ARGUMENTS, "--namespace", namespace, *more, values=values or {})


def objects_of(cluster, release: str = "shoal") -> set[tuple[str, str, str]]:
    """Return (kind, namespace, name) of a release's objects."""
    label = f"app.kubernetes.io/instance={release}"
    found = cluster.get(ALL_KINDS, "--all-namespaces", "-l", label)["items"]
    found += cluster.get(CLUSTER_KINDS, "-l", label)["items"]
    return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}


def image(cluster, namespace=SYSTEM) -> str:
    deployment = cluster.get("deployment", "shoal-operator", "-n", namespace)
    return deployment["spec"]["template"]["spec"]["containers"][0]["image"]


def create_job(cluster, name="j", namespace="default") -> str:
    """Create a TrainingJob and return its uid."""
    cluster.kubectl("wait", "--for=condition=Established", CRD, "--timeout=60s")
    job = {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "image": "x", "command": ["python", "train.py"], "epochs": 1,
            "trainer": {"minReplicas": 1, "maxReplicas": 2}, "parameterServer": {"replicas": 1},
        },
    }  # fmt: skip
    cluster.create(job, namespace=namespace)
    return uid(cluster, name, namespace)


def uid(cluster, name="j", namespace="default") -> str:
    return cluster.get("trainingjob", name, "-n", namespace)["metadata"]["uid"]


def changed_chart(folder):
    """Copy the chart, with a newer definition of TrainingJobs: one more column for kubectl."""
    shutil.copytree(CHART, folder)
    crds = folder / "templates" / "crds.yaml"
    column = "    additionalPrinterColumns:\n    - {name: Newer, type: string, jsonPath: .status.state}\n"
    text = crds.read_text()
    assert "    additionalPrinterColumns:\n" in text
    crds.write_text(text.replace("    additionalPrinterColumns:\n", column))
    return folder


def columns(cluster) -> list[str]:
    (version,) = cluster.get(CRD)["spec"]["versions"]
    return [each["name"] for each in version["additionalPrinterColumns"]]


def test_an_installation_is_ready_and_its_notes_say_what_comes_next(own_cluster, helm):
    said = install(helm)
    assert "serves all namespaces" in said
    assert "rollout status deployment/shoal-operator" in said
    assert "no image is published" in said
    label = re.search(r"kubectl (label namespace .*)", said)[1]
    own_cluster.kubectl(*label.split(), "--overwrite")
    found = objects_of(own_cluster)
    assert ("Deployment", SYSTEM, "shoal-operator") in found
    assert ("CustomResourceDefinition", "", "trainingjobs.shoal.dev") in found
    # Their namespace now refuses what is not restricted; new pods are admitted.
    own_cluster.kubectl("rollout", "restart", "deployment/shoal-operator", "-n", SYSTEM)
    own_cluster.kubectl("rollout", "status", "deployment/shoal-operator", "-n", SYSTEM, "--timeout=120s")
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        own_cluster.kubectl("run", "x", "--image=x", "-n", SYSTEM)
    set_image = nested("image.repository", "r.test/o")
    again = helm.run("upgrade", "shoal", str(CHART), "--namespace", SYSTEM, values=set_image)
    assert "no image is published" not in again
    assert "label namespace" not in again
    own_cluster.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce-")


def test_an_upgrade_replaces_the_operator_and_the_definition_and_keeps_the_jobs(own_cluster, helm, tmp_path):
    install(helm)
    job, before = create_job(own_cluster), objects_of(own_cluster)
    assert "Newer" not in columns(own_cluster)
    chart = changed_chart(tmp_path / "chart")
    helm.run("upgrade", "shoal", str(chart), "--namespace", SYSTEM, "--wait", values=nested("image.tag", "9"))
    assert image(own_cluster) == "example.org/shoal/operator:9"
    assert "Newer" in columns(own_cluster)
    assert uid(own_cluster) == job
    # A Job is immutable: the upgrade has a new one, and the earlier one is gone.
    own_cluster.until(
        lambda: (
            objects_of(own_cluster) - before == {("Job", SYSTEM, "shoal-setup-2")}
            and before - objects_of(own_cluster) == {("Job", SYSTEM, "shoal-setup")}
        ),
        "the earlier set-up Job to go",
    )
    helm.run("rollback", "shoal", "1", "--namespace", SYSTEM, "--wait")
    assert image(own_cluster) == "example.org/shoal/operator:0.1.0"
    assert "Newer" not in columns(own_cluster)
    assert uid(own_cluster) == job


def test_an_upgrade_with_the_same_values_changes_no_pod(own_cluster, helm):
    install(helm)

    def generations():
        found = own_cluster.get("deployments,statefulsets,cronjobs", "-n", SYSTEM)["items"]
        return {each["metadata"]["name"]: each["metadata"]["generation"] for each in found}

    before = generations()
    # A Job is deleted ten minutes after its end.
    own_cluster.kubectl("delete", "job", "shoal-setup", "-n", SYSTEM)
    helm.run("upgrade", "shoal", str(CHART), "--namespace", SYSTEM, values={})
    assert generations() == before
    assert len(before) == 3


def test_an_uninstall_keeps_the_definition_and_the_jobs_and_a_new_installation_takes_them(own_cluster, helm):
    install(helm)
    job = create_job(own_cluster)
    said = helm.run("uninstall", "shoal", "--namespace", SYSTEM, "--wait")
    assert "trainingjobs.shoal.dev" in said
    assert objects_of(own_cluster) == {("CustomResourceDefinition", "", "trainingjobs.shoal.dev")}
    assert uid(own_cluster) == job
    install(helm)
    assert uid(own_cluster) == job
    assert ("Deployment", SYSTEM, "shoal-operator") in objects_of(own_cluster)


def test_without_keep_an_uninstall_removes_the_definition_and_the_jobs(own_cluster, helm):
    said = install(helm, values=nested("crds.keep", False))
    assert "DELETES the definition of TrainingJobs" in said
    create_job(own_cluster)
    helm.run("uninstall", "shoal", "--namespace", SYSTEM, "--wait")
    own_cluster.until(lambda: not objects_of(own_cluster), "all objects to go")


def test_an_installation_by_kubectl_is_taken_over_with_its_jobs(own_cluster, helm):
    own_cluster.kubectl("apply", "--server-side", "-k", str(DEPLOY / "overlays" / "default"))
    job = create_job(own_cluster)
    with pytest.raises(HelmError, match="cannot be imported into the current release"):
        install(helm)
    install(helm, SYSTEM, "--take-ownership")
    assert uid(own_cluster) == job
    assert ("Deployment", SYSTEM, "shoal-operator") in objects_of(own_cluster)
    # The overlay has also made the namespace restricted.
    own_cluster.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce-")


def test_a_second_release_serves_a_namespace_of_its_own(own_cluster, helm):
    first = {"scope": {"namespaces": ["team-a"], "createNamespaces": True}}
    install(helm, values=first)
    second = install(helm, "shoal-b", values=SECOND, name="b")
    assert "serves the namespaces team-b" in second
    found = {"shoal": objects_of(own_cluster), "b": objects_of(own_cluster, "b")}
    assert not found["shoal"] & found["b"]
    assert ("ClusterRoleBinding", "", "shoal-operator-nodes-shoal-b") in found["b"]
    assert {namespace for kind, namespace, _ in found["b"] if kind == "RoleBinding"} == {"shoal-b", "team-b"}
    job = create_job(own_cluster, namespace="team-b")
    for account, namespace, may in [
        (SYSTEM, "team-a", True), (SYSTEM, "team-b", False), ("shoal-b", "team-b", True), ("shoal-b", "team-a", False),
    ]:  # fmt: skip
        assert can_list(own_cluster, account, namespace) == may
    helm.run("uninstall", "b", "--namespace", "shoal-b", "--wait")
    # The namespace of the jobs is kept, as they are.
    assert uid(own_cluster, namespace="team-b") == job
    assert objects_of(own_cluster) == found["shoal"]
    assert not objects_of(own_cluster, "b")


def can_list(cluster, account: str, namespace: str) -> bool:
    user = f"--as=system:serviceaccount:{account}:shoal-operator"
    try:
        return (
            cluster.kubectl("auth", "can-i", "list", "trainingjobs.shoal.dev", "-n", namespace, user).strip() == "yes"
        )
    except KubectlError:
        return False


def test_two_operators_for_one_job_are_refused(own_cluster, helm):
    install(helm)
    with pytest.raises(HelmError, match=f"the operator in namespace {SYSTEM} serves all namespaces; set its scope"):
        install(helm, "shoal-b", values=SECOND, name="b")
    helm.run("uninstall", "shoal", "--namespace", SYSTEM, "--wait")
    install(helm, values={"scope": {"namespaces": ["team-a"], "createNamespaces": True}})
    everywhere = SECOND | {"scope": {"namespaces": []}}
    with pytest.raises(HelmError, match=f"the operator in namespace {SYSTEM} serves namespaces of its own"):
        install(helm, "shoal-b", values=everywhere, name="b")
    with pytest.raises(HelmError, match="cannot be imported into the current release"):
        install(helm, "shoal-b", values=SECOND | {"scope": {"namespaces": ["team-a"]}}, name="b")


def test_an_etcd_of_ones_own_leaves_the_operator_alone_in_the_release(own_cluster, helm):
    external = {
        "etcd": {
            "embedded": {"enabled": False},
            "external": {"endpoints": ["https://etcd.test:9"], "secretName": "my-etcd"},
        }
    }
    install(helm, values=external)
    names = {
        name for kind, _, name in objects_of(own_cluster) if kind in {"Deployment", "StatefulSet", "Job", "CronJob"}
    }
    assert names == {"shoal-operator"}


def test_the_commands_of_the_manual_do_what_it_says(own_cluster, helm, tmp_path):
    text = section("Install with Helm")
    (values,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "deploy").symlink_to(DEPLOY)
    (tmp_path / "mine.yaml").write_text(values)
    commands = re.findall(r"^    ((?:helm|kubectl) .*)$", text, re.MULTILINE)
    words = [" ".join(each.split()[:2]) for each in commands]
    assert [each for each in words if each.startswith("helm")] == ["helm install", "helm upgrade", "helm uninstall"]
    for line in commands:
        follow(own_cluster, helm, tmp_path, line)
        if "helm install" in line:
            assert image(own_cluster).startswith(yaml.safe_load(values)["image"]["repository"])
    kept = {("CustomResourceDefinition", "", "trainingjobs.shoal.dev")}
    own_cluster.until(lambda: objects_of(own_cluster) == kept, "all objects but the definition to go")


def follow(cluster, helm, folder, line: str) -> None:
    """Run a command of the manual."""
    path = os.pathsep.join([str(helm.bin), str(cluster.folder / "bin"), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**helm.variables, "PATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_manual_names_every_group_of_values():
    text = section("Install with Helm")
    for name in yaml.safe_load((ROOT / "deploy/helm/shoal/values.yaml").read_text()):
        assert re.search(rf"`{name}[.`]", text), name
