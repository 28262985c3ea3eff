"""The rights of each account, checked with the API server."""

from __future__ import annotations

import json

import pytest

from tests.deploy.rendered import DEPLOY, SYSTEM, overlay, rights

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MADE = "services serviceaccounts configmaps deployments.apps statefulsets.apps poddisruptionbudgets.policy"
ANYWHERE = {
    "list watch": f"trainingjobs.shoal.dev nodes pods persistentvolumeclaims {MADE}",
    "get": MADE,
    "create": f"pods secrets events.events.k8s.io {MADE}",
    "list": "events",
    "patch": f"trainingjobs.shoal.dev/status events.events.k8s.io pods {MADE}",
    "delete": "pods trainingjobs.shoal.dev poddisruptionbudgets.policy",
    "update": "trainingjobs.shoal.dev/finalizers",
}
NEVER = {
    "get list watch update patch delete": "secrets roles.rbac.authorization.k8s.io clusterroles.rbac.authorization.k8s.io",
    "create": "trainingjobs.shoal.dev namespaces roles.rbac.authorization.k8s.io pods/exec serviceaccounts/token "
    "clusterrolebindings.rbac.authorization.k8s.io pods/eviction nodes",
    "update patch": "trainingjobs.shoal.dev nodes namespaces",
    "update": "pods",
    "get list watch delete": "events.events.k8s.io",
    "get watch create patch delete": "events",
    "get": "pods/log",
    "delete deletecollection": "services deployments.apps statefulsets.apps configmaps persistentvolumeclaims nodes",
    "impersonate": "users",
    "escalate bind": "clusterroles.rbac.authorization.k8s.io",
}
OWN_NAMESPACE = {"create": "leases.coordination.k8s.io", "get update": "leases.coordination.k8s.io/shoal-operator"}


def each(table):
    return [
        (verb, resource)
        for verbs, resources in table.items()
        for verb in verbs.split()
        for resource in resources.split()
    ]


def granted(cluster, account: str, namespace: str, asked) -> list[tuple[str, str]]:
    """Return the pairs of verb and resource that an account may use, by one call of kubectl."""
    reviews = [review(account, namespace, *one) for one in asked]
    together = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    answers = cluster.kubectl("create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', input=together).split()
    return [one for one, said in zip(asked, answers, strict=True) if said == "true"]


def allowed(cluster, account: str, namespace: str, verb: str, resource: str, *, name: str = "") -> bool:
    wanted = review(account, namespace, verb, resource, name=name)
    return json.loads(cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(wanted)))["status"]["allowed"]


def review(account: str, namespace: str, verb: str, resource: str, *, name: str = ""):
    resource, _, below = resource.partition("/")
    resource, _, group = resource.partition(".")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
    attributes |= {"name": name} if name else {"subresource": below}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": f"system:serviceaccount:{SYSTEM}:{account}",
                 "groups": [f"system:serviceaccounts:{SYSTEM}", "system:serviceaccounts", "system:authenticated"],
                 "resourceAttributes": attributes},
    }  # fmt: skip


def only(cluster, name: str) -> None:
    """Apply this overlay's rights and delete those of all other overlays."""
    bindings = "clusterrolebindings,clusterroles,rolebindings,roles"
    for scope in ([], ["-n", SYSTEM], ["-n", "shoal-jobs"]):
        kinds = bindings if scope else "clusterrolebindings,clusterroles"
        cluster.kubectl("delete", kinds, "-l", "app.kubernetes.io/part-of=shoal", *scope)
    cluster.apply(DEPLOY / "overlays" / name)


def test_the_operator_may_do_its_work_everywhere_and_nothing_else(cluster):
    only(cluster, "default")
    assert granted(cluster, "shoal-operator", "elsewhere", each(ANYWHERE)) == each(ANYWHERE)
    assert granted(cluster, "shoal-operator", "elsewhere", each(NEVER)) == []
    for namespace, may in ((SYSTEM, True), ("elsewhere", False)):
        assert allowed(cluster, "shoal-operator", namespace, "create", "leases.coordination.k8s.io") == may
        for verb in ("get", "update"):
            found = [
                allowed(cluster, "shoal-operator", namespace, verb, "leases.coordination.k8s.io", name=name)
                for name in ("shoal-operator", "another")
            ]
            assert found == [may, False]


def test_a_namespaced_operator_may_read_nodes_and_its_namespace_and_nothing_else(cluster):
    only(cluster, "namespaced")
    assert granted(cluster, "shoal-operator", "shoal-jobs", each(ANYWHERE)) == each(ANYWHERE)
    elsewhere = granted(cluster, "shoal-operator", "elsewhere", each(ANYWHERE))
    assert sorted(elsewhere) == [("list", "nodes"), ("watch", "nodes")]
    assert granted(cluster, "shoal-operator", "shoal-jobs", each(NEVER)) == []


def test_the_set_up_makes_secrets_and_sees_its_own_two(cluster):
    cluster.apply(DEPLOY / "overlays" / "default")
    assert allowed(cluster, "shoal-setup", SYSTEM, "create", "secrets")
    assert not allowed(cluster, "shoal-setup", "elsewhere", "create", "secrets")
    for name, may in (("shoal-etcd-server", True), ("shoal-etcd-operator", True), ("another", False)):
        assert allowed(cluster, "shoal-setup", SYSTEM, "get", "secrets", name=name) == may
        for verb in ("list", "watch", "update", "patch", "delete"):
            assert not allowed(cluster, "shoal-setup", SYSTEM, verb, "secrets", name=name)


def test_the_pods_of_etcd_have_no_token_and_no_rights(cluster):
    cluster.apply(DEPLOY / "overlays" / "default")
    pods = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=shoal-etcd")["items"]
    assert not [volume for pod in pods for volume in pod["spec"]["volumes"] if "projected" in volume]
    assert rights(overlay("default"), "shoal-etcd") == set()
    assert granted(cluster, "shoal-etcd", SYSTEM, each(ANYWHERE)) == []


@pytest.mark.parametrize("role", ["view", "edit", "admin"])
def test_editors_and_viewers_of_a_namespace_have_these_rights_on_its_jobs(cluster, tmp_path, role):
    cluster.apply(DEPLOY / "overlays" / "default")
    namespace = f"users-{role}-{tmp_path.stat().st_ino}"
    cluster.kubectl("create", "namespace", namespace)
    account = f"--serviceaccount={SYSTEM}:shoal-etcd"
    cluster.kubectl("create", "rolebinding", "x", f"--clusterrole={role}", account, "-n", namespace)

    def may(verb: str, resource: str = "trainingjobs.shoal.dev", *, there: str = namespace) -> bool:
        return allowed(cluster, "shoal-etcd", there, verb, resource)

    cluster.until(lambda: may("watch"), "the roles to be put together")
    edits = role != "view"
    cluster.until(lambda: may("create") == edits, "the roles to be put together")
    assert may("patch", "trainingjobs.shoal.dev/scale") == may("delete") == edits
    assert not may("get", there="elsewhere")
    assert not may("patch", "trainingjobs.shoal.dev/status")


@pytest.mark.parametrize("name", ["default", "namespaced", "autoscaler"])
def test_what_is_granted_is_what_these_tests_know(name):
    ranks = {"list watch": "priorityclasses.scheduling.k8s.io"} if name == "autoscaler" else {}
    table = each(ANYWHERE) + each(ranks) + [(verb, resource.split("/")[0]) for verb, resource in each(OWN_NAMESPACE)]

    def parts(resource: str) -> tuple[str, str]:
        resource, _, below = resource.partition("/")
        resource, _, group = resource.partition(".")
        return group, resource + (f"/{below}" if below else "")

    assert rights(overlay(name), "shoal-operator") == {(*parts(resource), verb) for verb, resource in table}
