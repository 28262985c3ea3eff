"""Error answers of an API server."""

import pytest

from shoal.kube import KubeConflictError, KubeForbiddenError, KubeGoneError, KubeInvalidError, KubeUnreachableError
from shoal.kube.errors import error_of
from shoal.kube.kinds import KINDS


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, KubeInvalidError),
        (401, KubeForbiddenError),
        (403, KubeForbiddenError),
        (404, KubeGoneError),
        (409, KubeConflictError),
        (410, KubeGoneError),
        (422, KubeInvalidError),
        (429, KubeUnreachableError),
        (500, KubeUnreachableError),
        (503, KubeUnreachableError),
    ],
)
def test_what_a_caller_can_do_follows_from_the_status(status, kind):
    found = error_of(
        status, {"message": "m", "reason": "R", "details": {"causes": [{"field": "spec.x", "message": "no"}]}}
    )
    assert type(found) is kind
    assert (str(found), found.status, found.reason, found.causes) == ("m", status, "R", (("spec.x", "no"),))


@pytest.mark.parametrize("body", [None, "a proxy's page", [], {}, {"details": None}])
def test_an_empty_response(body):
    assert str(error_of(503, body)) == "the API server answers 503"


def test_where_objects_are():
    assert KINDS["Pod"].path("n", "p") == "/api/v1/namespaces/n/pods/p"
    assert KINDS["Pod"].path() == "/api/v1/pods"
    assert KINDS["Node"].path("", "x", subresource="status") == "/api/v1/nodes/x/status"
    assert KINDS["TrainingJob"].path("n") == "/apis/shoal.dev/v1alpha1/namespaces/n/trainingjobs"


def test_a_request_too_large_for_etcd_is_not_retried():
    body = {"kind": "Status", "message": "etcdserver: request is too large", "code": 500}
    assert type(error_of(500, body)) is KubeInvalidError
