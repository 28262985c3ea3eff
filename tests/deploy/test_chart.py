"""The Helm chart, rendered: the same objects as the overlays, and every value does what it says."""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress

import pytest
import yaml

from deploy.helm import build
from shoal.operator.etcd import certificate
from tests.cluster import binaries
from tests.deploy.helm import CHART, HELM_LABELS, Helm, HelmError, comparable, merged, nested
from tests.deploy.rendered import OVERLAYS, SYSTEM, arguments, find, overlay, render, templates
from tests.deploy.test_overlays import user_overlay

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
NAMESPACED = {"scope": {"namespaces": ["shoal-jobs"], "createNamespaces": True}}
SAME = {
    "default": {},
    "namespaced": NAMESPACED,
    "ha-etcd": {"etcd": {"embedded": {"members": 3}}},
    "autoscaler": {"autoscaler": {"enabled": True}},
    "private-registry": {"image": {"pullSecrets": [{"name": "shoal-pull"}]}},
}
"""Overlay -> values with which the chart has its objects."""
EXTERNAL = {
    "etcd": {
        "embedded": {"enabled": False},
        "external": {"endpoints": ["https://a.test:1", "https://b.test:1"], "secretName": "my-etcd"},
    }
}


@pytest.fixture(scope="module")
def helm(tmp_path_factory):
    return Helm(tmp_path_factory.mktemp("helm"))


def test_the_chart_in_the_repository_is_the_one_that_the_manifests_give():
    wanted = build.build(str(binaries.path("kubectl")))
    there = {str(path.relative_to(CHART)): path.read_text() for path in CHART.rglob("*") if path.is_file()}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    assert not stale, "run python -m deploy.helm.build"


def test_a_check_names_the_stale_files_and_writes_none_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "CHART", tmp_path)
    kubectl = str(binaries.path("kubectl"))
    monkeypatch.setattr("sys.argv", ["build", "--kubectl", kubectl, "--check"])
    assert build.main() == 1
    assert "stale: deploy/helm/shoal/values.yaml" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    (tmp_path / "left-over.txt").write_text("")
    monkeypatch.setattr("sys.argv", ["build", "--kubectl", kubectl])
    assert build.main() == 0
    assert (tmp_path / "values.yaml").read_text() == (CHART / "values.yaml").read_text()
    assert not (tmp_path / "left-over.txt").exists()


def test_a_missing_kubectl_is_named_with_the_fix(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build", "--kubectl", "/nowhere/kubectl"])
    assert build.main() == 1
    assert "install it, or name it by --kubectl" in capsys.readouterr().err


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_chart_has_the_objects_of_an_overlay(helm, name):
    assert comparable(helm.template(SAME[name])) == comparable(overlay(name))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("etcd-backup", nested("etcd.embedded.backup.enabled", True)),
        ("pod-monitor", nested("monitoring.podMonitor.enabled", True)),
    ],
)
def test_the_chart_has_the_objects_of_a_component(helm, tmp_path, name, values):
    (tmp_path / "kustomization.yaml").write_text(user_overlay(tmp_path, name))
    assert comparable(helm.template(values)) == comparable(render(tmp_path))


def test_all_components_together_are_in_one_release(helm):
    values = merged(*SAME.values(), nested("etcd.embedded.backup.enabled", True))
    objects = helm.template(merged(values, nested("scope.namespaces", ["team-a", "team-b"])))
    args = arguments(objects, "shoal-operator")
    assert args[-3:] == [
        "--namespace=team-a",
        "--namespace=team-b",
        "--autoscaler=/etc/shoal/autoscaler/autoscaler.yaml",
    ]
    roles = [each["metadata"]["namespace"] for each in objects if each["kind"] == "RoleBinding"]
    assert {"team-a", "team-b"} <= set(roles)
    assert find(objects, "StatefulSet", "shoal-etcd")["spec"]["replicas"] == 3


def test_every_object_has_the_labels_of_its_release(helm):
    for each in helm.template(merged(*SAME.values())):
        assert set(HELM_LABELS) <= set(each["metadata"]["labels"]), each["metadata"]["name"]


# --- Values ---

TOLERATION = {"key": "pool", "operator": "Exists", "effect": "NoSchedule"}
RESOURCES = {"requests": {"cpu": "2", "memory": "3Gi"}, "limits": {"memory": "4Gi"}}
OPERATOR, ETCD = ("Deployment", "shoal-operator"), ("StatefulSet", "shoal-etcd")
POD = "spec.template.spec"
BACKUP = nested("etcd.embedded.backup.enabled", True)
MONITOR = nested("monitoring.podMonitor.enabled", True)
CLAIM = "spec.volumeClaimTemplates.0.spec"
FIELDS = [
    ("image.repository", "r.test/o", {}, OPERATOR, f"{POD}.containers.0.image", "r.test/o:0.1.0"),
    ("image.repository", "r.test/o", {}, ("Job", "shoal-setup"), f"{POD}.containers.0.image", "r.test/o:0.1.0"),
    ("image.tag", "9", {}, OPERATOR, f"{POD}.containers.0.image", "example.org/shoal/operator:9"),
    ("image.pullPolicy", "Always", {}, OPERATOR, f"{POD}.containers.0.imagePullPolicy", "Always"),
    ("image.pullSecrets", [{"name": "x"}], {}, ("ServiceAccount", "shoal-etcd"), "imagePullSecrets", [{"name": "x"}]),
    ("operator.replicas", 3, {}, OPERATOR, "spec.replicas", 3),
    ("operator.resources", RESOURCES, {}, OPERATOR, f"{POD}.containers.0.resources", RESOURCES),
    ("nodeSelector", {"pool": "system"}, {}, OPERATOR, f"{POD}.nodeSelector", {"pool": "system"}),
    ("nodeSelector", {"pool": "system"}, {}, ETCD, f"{POD}.nodeSelector", {"pool": "system"}),
    ("tolerations", [TOLERATION], {}, OPERATOR, f"{POD}.tolerations", [TOLERATION]),
    ("tolerations", [TOLERATION], {}, ("Job", "shoal-setup"), f"{POD}.tolerations", [TOLERATION]),
    ("scope.namespaces", ["team"], {}, OPERATOR, f"{POD}.containers.0.args.8", "--namespace=team"),
    ("scope.createNamespaces", True, nested("scope.namespaces", ["team"]), ("Namespace", "team"), "kind", "Namespace"),
    ("autoscaler.enabled", True, {}, OPERATOR, f"{POD}.volumes.1.configMap.name", "shoal-autoscaler"),
    ("etcd.embedded.members", 3, {}, ETCD, "spec.replicas", 3),
    ("etcd.embedded.image.repository", "r.test/e", {}, ETCD, f"{POD}.containers.0.image", "r.test/e:v3.6.6"),
    ("etcd.embedded.image.tag", "v4", {}, ETCD, f"{POD}.containers.0.image", "gcr.io/etcd-development/etcd:v4"),
    ("etcd.embedded.image.pullPolicy", "Never", {}, ETCD, f"{POD}.containers.0.imagePullPolicy", "Never"),
    ("etcd.embedded.resources", RESOURCES, {}, ETCD, f"{POD}.containers.0.resources", RESOURCES),
    ("etcd.embedded.storage.size", "9Gi", {}, ETCD, f"{CLAIM}.resources.requests.storage", "9Gi"),
    ("etcd.embedded.storage.className", "fast", {}, ETCD, f"{CLAIM}.storageClassName", "fast"),
    ("etcd.embedded.backup.enabled", True, {}, ("CronJob", "shoal-etcd-backup"), "kind", "CronJob"),
    ("etcd.embedded.backup.size", "7Gi", BACKUP, ("PersistentVolumeClaim", "shoal-etcd-backup"),
     "spec.resources.requests.storage", "7Gi"),
    ("etcd.embedded.backup.className", "slow", BACKUP, ("PersistentVolumeClaim", "shoal-etcd-backup"),
     "spec.storageClassName", "slow"),
    ("etcd.external.endpoints", ["https://x.test:5"], EXTERNAL, OPERATOR, f"{POD}.containers.0.args.0",
     "--etcd=https://x.test:5"),
    ("etcd.external.secretName", "mine", EXTERNAL, OPERATOR, f"{POD}.volumes.0.secret.secretName", "mine"),
    ("monitoring.podMonitor.enabled", True, {}, ("PodMonitor", "shoal-operator"), "kind", "PodMonitor"),
    ("monitoring.podMonitor.labels", {"release": "p"}, MONITOR, ("PodMonitor", "shoal-etcd"),
     "metadata.labels.release", "p"),
]  # fmt: skip
"""Value, what it is set to, other values, object, field, and what the field then is."""
WITHOUT = {
    "etcd.embedded.enabled": {"StatefulSet", "Job", "CronJob", "Service"},
    "crds.install": {"CustomResourceDefinition"},
    "priorityClasses.create": {"PriorityClass"},
    "userRoles.create": set(),
}
"""Value -> kinds that no object has where it is false."""
OTHERS = {"crds.keep", "autoscaler.config"}
"""Values with a test of their own."""


def leaves(values, path=""):
    """Return the path of every value that is not a group of values."""
    if path in {"nodeSelector", "autoscaler.config"} or path.endswith((".resources", ".labels")):
        return [path]
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, f"{path}.{key}".strip("."))]


def at(value, path: str):
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_every_value_has_a_test():
    assert {each[0] for each in FIELDS} | set(WITHOUT) | OTHERS == set(leaves(DEFAULTS))


@pytest.mark.parametrize(("path", "value", "others", "which", "field", "wanted"), FIELDS, ids=[
    f"{path} in {which[1]}" for path, _, _, which, _, _ in FIELDS
])  # fmt: skip
def test_a_value_is_in_its_field(helm, path, value, others, which, field, wanted):
    found = find(helm.template(merged(others, nested(path, value))), *which)
    assert at(found, field) == wanted
    before = {(each["kind"], each["metadata"]["name"]): each for each in helm.template(others)}
    if which in before:
        with suppress(KeyError, IndexError):
            assert at(before[which], field) != wanted


@pytest.mark.parametrize("path", WITHOUT)
def test_without_a_part_none_of_its_objects_is_there(helm, path):
    values = EXTERNAL if path == "etcd.embedded.enabled" else nested(path, False)
    before, after = helm.template(), helm.template(values)
    kinds = {each["kind"] for each in after}
    assert not WITHOUT[path] & kinds
    gone = {each["metadata"]["name"] for each in before} - {each["metadata"]["name"] for each in after}
    wanted = {
        "etcd.embedded.enabled": {"shoal-etcd", "shoal-etcd-members", "shoal-etcd-defragment", "shoal-setup"},
        "crds.install": {"trainingjobs.shoal.dev"},
        "priorityClasses.create": {"shoal-servers", "shoal-minimum", "shoal-surplus"},
        "userRoles.create": {"shoal-edit", "shoal-view"},
    }
    assert gone == wanted[path]


def test_every_pod_has_the_images_and_nodes_of_the_values(helm):
    values = merged(
        BACKUP,
        nested("image.repository", "r.test/o"),
        nested("etcd.embedded.image.repository", "r.test/e"),
        {"nodeSelector": {"pool": "system"}, "tolerations": [TOLERATION]},
    )
    pods = templates(helm.template(values))
    assert len(pods) == 5
    for name, template in pods.items():
        (container,) = template["spec"]["containers"]
        assert container["image"].startswith("r.test/")
        assert template["spec"]["nodeSelector"] == {"pool": "system"}, name
        assert template["spec"]["tolerations"] == [TOLERATION], name


def test_an_external_etcd_has_all_endpoints_and_its_own_secret(helm):
    objects = helm.template(EXTERNAL)
    assert "--etcd=https://a.test:1,https://b.test:1" in arguments(objects, "shoal-operator")
    names = {each["metadata"]["name"] for each in objects}
    assert not [name for name in names if name.startswith(("shoal-etcd", "shoal-setup"))]
    assert "shoal-etcd-operator" not in json.dumps(objects)


def test_the_definition_is_kept_unless_the_values_say_otherwise(helm):
    kept = find(helm.template(), "CustomResourceDefinition", "trainingjobs.shoal.dev")
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    objects = helm.template(nested("crds.keep", False))
    assert "annotations" not in find(objects, "CustomResourceDefinition", "trainingjobs.shoal.dev")["metadata"]


def test_the_autoscalers_configuration_is_that_of_the_values(helm):
    config = {"dryRun": True, "cycle": "10s", "movesPerCycle": 0, "headRoom": 1.5,
              "weights": [{"label": "team=search", "weight": 2}]}  # fmt: skip
    objects = helm.template({"autoscaler": {"enabled": True, "config": config}})
    found = yaml.safe_load(find(objects, "ConfigMap", "shoal-autoscaler")["data"]["autoscaler.yaml"])
    assert found == DEFAULTS["autoscaler"]["config"] | config


def test_another_namespace_is_in_every_object_and_in_cluster_wide_names(helm):
    objects = helm.template(merged(BACKUP, nested("autoscaler.enabled", True)), namespace="second")
    for each in objects:
        each["metadata"].pop("labels")
        each.get("spec", {}).pop("template", {}).get("metadata", {}).pop("labels", None)
    for template in templates(helm.template(BACKUP, namespace="second")).values():
        template["metadata"].pop("labels")
        assert SYSTEM not in json.dumps(template)
    texts = [json.dumps(each) for each in objects if each["kind"] != "CronJob"]
    assert not [text for text in texts if SYSTEM in text]
    own = {each["metadata"]["name"] for each in objects if each["kind"] == "ClusterRoleBinding"}
    assert own == {"shoal-operator-second", "shoal-autoscaler-second"}
    again = helm.template(namespace="second")
    endpoint = next(each for each in arguments(again, "shoal-operator") if each.startswith("--etcd="))
    host = endpoint.removeprefix("--etcd=https://").removesuffix(":2379")
    assert host in certificate.names("shoal-etcd", "second", members=3)
    roles = {each["metadata"]["name"] for each in objects if each["kind"] == "ClusterRole"}
    assert {each["roleRef"]["name"] for each in objects if each["kind"] == "ClusterRoleBinding"} <= roles


# --- The schema ---


def groups(values, path=()):
    """Return the path of every group of values, the whole included."""
    if isinstance(values, dict) and values:
        yield path
        for key, value in values.items():
            yield from groups(value, (*path, key))


FREE = {("operator", "resources", "requests"), ("operator", "resources", "limits"),
        ("etcd", "embedded", "resources", "requests"), ("etcd", "embedded", "resources", "limits")}  # fmt: skip
GROUPS = [path for path in groups(DEFAULTS) if path not in FREE]


@pytest.mark.parametrize("path", GROUPS, ids=[".".join(path) or "top" for path in GROUPS])
def test_a_misspelt_value_is_refused(helm, path):
    values = copy.deepcopy(DEFAULTS)
    group = values
    for key in path:
        group = group[key]
    group["replicsa"] = 1
    with pytest.raises(HelmError, match=r"replicsa"):
        helm.template(values)


WRONG = [
    ("image.repository", ""), ("image.repository", 5), ("image.tag", 5), ("image.tag", "a b"), ("image.pullPolicy", "always"),
    ("image.pullSecrets", ["shoal-pull"]), ("image.pullSecrets", "shoal-pull"),
    ("operator.replicas", "2"), ("operator.replicas", -1), ("operator.replicas", 1.5),
    ("operator.resources", {"limit": {}}), ("operator.resources", {"limits": {"memory": "1 GB"}}),
    ("nodeSelector", {"gpu": True}), ("nodeSelector", ["x"]),
    ("tolerations", [{"effect": "Never"}]), ("tolerations", [{"kye": "x"}]), ("tolerations", {"key": "x"}),
    ("scope.namespaces", "team"), ("scope.namespaces", ["Team"]), ("scope.namespaces", ["a", "a"]),
    ("scope.createNamespaces", "yes"),
    ("autoscaler.enabled", 1), ("autoscaler.config", {"cycle": 5}), ("autoscaler.config", {"dryrun": True}),
    ("autoscaler.config", {"priorities": [{"name": "x"}]}), ("autoscaler.config", {"movesPerCycle": -1}),
    ("etcd.embedded.enabled", "true"), ("etcd.embedded.members", 2), ("etcd.embedded.image.repository", ""),
    ("etcd.embedded.image.tag", ""), ("etcd.embedded.image.pullPolicy", "x"), ("etcd.embedded.resources", []),
    ("etcd.embedded.storage.size", 8), ("etcd.embedded.storage.size", "8 Gi"), ("etcd.embedded.storage.className", 1),
    ("etcd.embedded.backup.enabled", "no"), ("etcd.embedded.backup.size", ""), ("etcd.embedded.backup.className", []),
    ("etcd.external.endpoints", ["https://x.test:1"]), ("etcd.external.endpoints", "https://x.test:1"),
    ("etcd.external.secretName", 5), ("etcd.external.secretName", "A"),
    ("crds.install", "no"), ("crds.keep", 0), ("priorityClasses.create", "no"), ("userRoles.create", "no"),
    ("monitoring.podMonitor.enabled", "no"), ("monitoring.podMonitor.labels", {"x": 1}),
]  # fmt: skip


def test_every_value_is_mistyped_in_a_test():
    assert {path for path, _ in WRONG} == set(leaves(DEFAULTS))


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}={json.dumps(value)}" for path, value in WRONG])
def test_a_mistyped_value_is_refused_with_its_path(helm, path, value):
    with pytest.raises(HelmError, match="values don't meet the specifications of the schema") as refused:
        helm.template(nested(path, value))
    assert "/".join(path.split(".")) in str(refused.value)


@pytest.mark.parametrize(
    ("external", "named"),
    [
        ({"endpoints": [], "secretName": "x"}, "endpoints"),
        ({"endpoints": ["https://x.test:1"], "secretName": ""}, "secretName"),
        ({"endpoints": ["x.test:1"], "secretName": "x"}, "endpoints"),
    ],
)
def test_an_external_etcd_needs_endpoints_and_a_secret(helm, external, named):
    with pytest.raises(HelmError, match=rf"etcd/external/{named}"):
        helm.template({"etcd": {"embedded": {"enabled": False}, "external": external}})


# --- As a package ---


def test_the_linter_has_nothing_to_say(helm):
    said = helm.run("lint", "--strict", str(CHART))
    assert "0 chart(s) failed" in said
    assert not re.findall(r"\[(WARNING|ERROR)\]", said), said


def test_a_package_renders_the_same_and_fits_into_a_release(helm, tmp_path):
    helm.run("package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("shoal-*.tgz")
    assert helm.template(chart=package) == helm.template()
    # The API server accepts Secrets up to 1 MiB; a release's has the chart and the manifest, compressed and in base64 twice.
    assert package.stat().st_size < 200_000


def test_it_is_a_part_of_another_chart(helm, tmp_path):
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "shoal").symlink_to(CHART)
    (tmp_path / "values.yaml").write_text("global: {team: x}\nshoal: {operator: {replicas: 3}}\n")
    objects = helm.template(chart=tmp_path)
    assert find(objects, "Deployment", "shoal-operator")["spec"]["replicas"] == 3
