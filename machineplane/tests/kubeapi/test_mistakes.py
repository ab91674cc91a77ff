"""Whatever comes in, the answer is a Status with the right code; nothing is an internal error."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeapi_client import DEPLOYMENTS, Client, deployment
from kubeapi_memory import MemoryBackend

from machineplane.kubeapi.app import create_app
from machineplane.kubeapi.bodies import MAX_BODY, MAX_OBJECT
from machineplane.kubeapi.context import Api


def is_status(reply, code, reason):
    assert (reply.status, reply.body.get("kind"), reply.body.get("reason")) == (code, "Status", reason), reply
    assert reply.body["code"] == code and reply.body["message"]
    return reply.body


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"{", "application/json"),
        (b"[1]", "application/json"),
        (b"", "application/json"),
        (b"a: [", "application/yaml"),
        (b"a: 1\n---\nb: 2\n", "application/yaml"),
        (b"\xff\xfe\x00", "application/yaml"),
        (b"k: !!python/object:os.system {}", "application/yaml"),
        (b"a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "application/yaml"),
        (b"a: .inf", "application/yaml"),
        (b'{"a": NaN}', "application/json"),
        (b'{"a": "\\ud800"}', "application/json"),
        (b'{"a":' * 20000, "application/json"),
        (b"k8s\0\xff\xff", "application/vnd.kubernetes.protobuf"),
        (b"nothing", "application/vnd.kubernetes.protobuf"),
    ],
)
async def test_malformed_bodies_are_400(client, body, media):
    is_status(await client("POST", DEPLOYMENTS, body, Content_Type=media), 400, "BadRequest")


async def test_media_types_nobody_reads_are_415(client):
    is_status(await client("POST", DEPLOYMENTS, b"x", Content_Type="image/png"), 415, "UnsupportedMediaType")
    await client.created()
    is_status(await client("PATCH", f"{DEPLOYMENTS}/web", {}), 415, "UnsupportedMediaType")


async def test_too_large_is_413(client):
    body = json.dumps(deployment() | {"x": "y" * MAX_BODY}).encode()
    is_status(await client("POST", DEPLOYMENTS, body), 413, "RequestEntityTooLarge")
    wanted = deployment()
    wanted["spec"]["template"]["spec"]["containers"][0]["args"] = ["y" * MAX_OBJECT]
    is_status(await client("POST", DEPLOYMENTS, wanted), 413, "RequestEntityTooLarge")


@pytest.mark.parametrize(
    "path",
    ["/apis/apps/v1/unicorns", "/apis/nope/v1", "/api/v2/pods", "/x", "/api/v1/pods/a", "/api/v1//pods"],
)
async def test_unknown_paths_are_404(client, path):
    is_status(await client("GET", path), 404, "NotFound")


async def test_url_and_body_must_agree(client):
    wanted = deployment()
    wanted["metadata"]["namespace"] = "other"
    body = is_status(await client("POST", DEPLOYMENTS, wanted), 400, "BadRequest")
    assert "does not match the namespace" in body["message"]
    is_status(await client("POST", DEPLOYMENTS, deployment() | {"kind": "Pod"}), 400, "BadRequest")
    is_status(await client("POST", DEPLOYMENTS, deployment() | {"apiVersion": "v1"}), 400, "BadRequest")
    await client.created()
    is_status(await client("PUT", f"{DEPLOYMENTS}/web", deployment(name="other")), 400, "BadRequest")


def _broken(**changes):
    wanted = deployment()
    for path, value in changes.items():
        spot, *rest = path.split("__")
        node = wanted
        for step in rest:
            node, spot = node[int(spot) if spot.isdigit() else spot], step
        node[int(spot) if spot.isdigit() else spot] = value
    return wanted


@pytest.mark.parametrize(
    ("change", "value", "field", "reason"),
    [
        ("metadata__name", "Web_1", "metadata.name", "FieldValueInvalid"),
        ("metadata__name", "", "metadata.name", "FieldValueRequired"),
        ("metadata__labels", {"a b": "c"}, "metadata.labels", "FieldValueInvalid"),
        ("spec__replicas", -1, "spec.replicas", "FieldValueInvalid"),
        ("spec__selector", None, "spec.selector", "FieldValueRequired"),
        ("spec__selector", {}, "spec.selector", "FieldValueInvalid"),
        (
            "spec__selector",
            {"matchLabels": {"app": "x"}},
            "spec.template.metadata.labels",
            "FieldValueInvalid",
        ),
        ("spec__template__spec__containers", [], "spec.template.spec.containers", "FieldValueRequired"),
        (
            "spec__template__spec__containers__0__image",
            "",
            "spec.template.spec.containers[0].image",
            "FieldValueRequired",
        ),
        (
            "spec__template__spec__restartPolicy",
            "Never",
            "spec.template.spec.restartPolicy",
            "FieldValueNotSupported",
        ),
        (
            "spec__template__spec__containers__0__ports",
            [{"containerPort": 99999}],
            "spec.template.spec.containers[0].ports[0].containerPort",
            "FieldValueInvalid",
        ),
        (
            "spec__template__spec__containers__0__resources",
            {"limits": {"cpu": "-1"}},
            "spec.template.spec.containers[0].resources.limits[cpu]",
            "FieldValueInvalid",
        ),
        (
            "spec__template__spec__containers__0__volumeMounts",
            [{"name": "x", "mountPath": "/x"}],
            "spec.template.spec.containers[0].volumeMounts[0].name",
            "FieldValueNotFound",
        ),
        ("spec__strategy", {"type": "Slow"}, "spec.strategy.type", "FieldValueNotSupported"),
    ],
)
async def test_invalid_objects_are_422_with_a_cause(client, change, value, field, reason):
    body = is_status(await client("POST", DEPLOYMENTS, _broken(**{change: value})), 422, "Invalid")
    assert (field, reason) in {(cause["field"], cause["reason"]) for cause in body["details"]["causes"]}


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("spec__replicas", "three"),
        ("spec__template__spec__containers", {}),
        ("metadata", []),
        ("spec__template__spec__containers__0__resources", {"limits": {"cpu": "1 core"}}),
        ("metadata__creationTimestamp", "yesterday"),
    ],
)
async def test_values_of_the_wrong_type_are_400(client, change, value):
    body = is_status(await client("POST", DEPLOYMENTS, _broken(**{change: value})), 400, "BadRequest")
    assert "cannot be handled as a Deployment" in body["message"]


async def test_unknown_fields_by_field_validation(client):
    wanted = _broken(spec__replicsa=3)
    strict = await client("POST", f"{DEPLOYMENTS}?fieldValidation=Strict", wanted)
    assert 'unknown field "spec.replicsa"' in is_status(strict, 400, "BadRequest")["message"]
    warned = await client("POST", f"{DEPLOYMENTS}?dryRun=All", wanted)
    assert warned.headers["Warning"] == '299 - "unknown field \\"spec.replicsa\\""'
    assert "replicsa" not in warned.body["spec"]
    ignored = await client("POST", f"{DEPLOYMENTS}?dryRun=All&fieldValidation=Ignore", wanted)
    assert ignored.status == 201 and "Warning" not in ignored.headers
    double = b'{"metadata": {"name": "a", "name": "b"}}'
    strict = await client("POST", f"{DEPLOYMENTS}?fieldValidation=Strict", double)
    assert 'duplicate field "name"' in is_status(strict, 400, "BadRequest")["message"]


async def test_the_selector_of_a_deployment_stays(client):
    await client.created()
    wanted = deployment()
    wanted["spec"]["selector"]["matchLabels"] = {"app": "web", "x": "y"}
    wanted["spec"]["template"]["metadata"]["labels"] = {"app": "web", "x": "y"}
    body = is_status(await client("PUT", f"{DEPLOYMENTS}/web", wanted), 422, "Invalid")
    assert "field is immutable" in body["message"]


async def test_a_fault_of_the_backend_is_a_500_and_the_server_goes_on(client):
    client.backend.fail = RuntimeError("secret detail")
    body = is_status(await client("GET", DEPLOYMENTS), 500, "InternalError")
    assert "secret detail" not in body["message"]
    client.backend.fail = None
    assert (await client("GET", DEPLOYMENTS)).status == 200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "metadata",
    "spec",
    "name",
    "labels",
    "annotations",
    "managedFields",
    "containers",
    "template",
    "$patch",
    "ports",
    "$retainKeys",
    "replicas",
    "selector",
    "kind",
    "apiVersion",
    "$setElementOrder/containers",
    "finalizers",
    "resourceVersion",
)
LIKELY = st.recursive(
    JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
MEDIA = (
    "application/json",
    "application/yaml",
    "application/strategic-merge-patch+json",
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
)


@settings(max_examples=150)
@given(
    method=st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]),
    path=st.sampled_from(["", "/web", "/web/scale"]),
    media=st.sampled_from(MEDIA),
    value=LIKELY | st.binary(max_size=40) | st.binary(max_size=40).map(lambda data: b"k8s\0" + data),
)
async def test_no_body_is_an_internal_error(method, path, media, value):
    backend = MemoryBackend()
    client = Client(backend, create_app(Api(backend)))
    await client.created()
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    reply = await client(method, f"{DEPLOYMENTS}{path}?fieldManager=x&force=true", body, Content_Type=media)
    assert reply.status < 500, reply
    assert reply.body["kind"] in ("Status", "Deployment", "DeploymentList", "Scale")


UNHEEDED = {
    "affinity": {
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]},
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}],
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}
                ]
            },
        },
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "priorityClassName": "high",
    "automountServiceAccountToken": True,
}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "APPLY"])
async def test_what_is_not_obeyed_is_told(client, method):
    wanted = deployment()
    wanted["spec"]["template"]["spec"] |= UNHEEDED
    at = f"{DEPLOYMENTS}/web"
    if method == "POST":
        reply = await client("POST", DEPLOYMENTS, wanted)
    elif method == "APPLY":
        reply = await client(
            "PATCH", f"{at}?fieldManager=me", wanted, Content_Type="application/apply-patch+yaml"
        )
    else:
        await client.created()
        patch = {"spec": {"template": {"spec": UNHEEDED}}}
        media = "application/json" if method == "PUT" else "application/merge-patch+json"
        reply = await client(method, at, wanted if method == "PUT" else patch, Content_Type=media)
    assert reply.status in (200, 201), reply
    said = "\n".join(reply.headers.getlist("Warning"))
    for field in (
        "podAntiAffinity",
        "preferred",
        "matchFields",
        "topologySpread",
        "priorityClass",
        "automount",
    ):
        assert field in said
    assert said.count("spec.template.spec.") == 6


async def test_what_is_obeyed_is_not_warned_of(client):
    reply = await client("POST", DEPLOYMENTS, deployment())
    assert reply.status == 201 and "Warning" not in reply.headers


async def test_no_dns_server_is_refused_where_none_is_left(client):
    wanted = deployment()
    wanted["spec"]["template"]["spec"]["dnsPolicy"] = "None"
    body = is_status(await client("POST", DEPLOYMENTS, wanted), 422, "Invalid")
    assert "dnsConfig.nameservers" in body["message"]


async def test_a_path_that_is_not_there_has_details_as_kubectl_debug_reads_them(client):
    """Client programs follow this pointer without a look; without it kubectl debug ends in a panic."""
    body = is_status(await client("PATCH", f"{DEPLOYMENTS}/web/nothing", {}), 404, "NotFound")
    assert body["details"] == {}
