"""Protobuf bodies: encoded here by hand, field by field, as Go's generated code writes them."""

from hypothesis import given
from hypothesis import strategies as st
from kubeapi_client import DEPLOYMENTS

from machineplane.kubeapi.errors import ApiError
from machineplane.kubeapi.protobuf import MAGIC, decode


def number(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(field, *parts):
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return number(field << 3 | 2) + number(len(data)) + data


def varint(field, value):
    return number(field << 3) + number(value % 2**64)


def envelope(api_version, kind, raw):
    return MAGIC + block(1, block(1, api_version), block(2, kind)) + block(2, raw)


LABELS = block(1, "app") + block(2, "web")
CONTAINER = block(
    2, block(1, "main"), block(2, "nginx"), block(5, ""),
    block(6, block(1, ""), varint(2, 0), varint(3, 80), block(4, "")),
    block(8, block(1, block(1, "cpu"), block(2, block(1, "500m")))),
    block(10, block(1, block(2, block(1, "/x"), block(2, varint(1, 0), varint(2, 8080), block(3, "")), block(3, ""))),
          varint(2, 5), varint(3, 0)),
)  # fmt: skip
TEMPLATE = block(3, block(1, block(1, ""), block(11, LABELS)), block(2, CONTAINER, varint(4, 0)))
DEPLOYMENT = (
    block(1, block(1, "web"), block(3, ""), block(8, b""), block(11, LABELS))
    + block(2, varint(1, 0), block(2, block(1, LABELS)), TEMPLATE, block(4, block(1, "")), varint(5, 0))
    + block(3, varint(1, 0), varint(2, 0))
)


def test_a_deployment_reads_as_its_json():
    assert decode(envelope("apps/v1", "Deployment", DEPLOYMENT)) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [
                        {
                            "name": "main",
                            "image": "nginx",
                            "ports": [{"containerPort": 80}],
                            "resources": {"limits": {"cpu": "500m"}},
                            "livenessProbe": {
                                "httpGet": {"path": "/x", "port": 8080},
                                "initialDelaySeconds": 5,
                            },
                        }
                    ],
                    "terminationGracePeriodSeconds": 0,
                },
            },
        },
    }


async def test_it_is_created(client):
    body = envelope("apps/v1", "Deployment", DEPLOYMENT)
    reply = await client("POST", DEPLOYMENTS, body, Content_Type="application/vnd.kubernetes.protobuf")
    assert reply.status == 201 and reply.body["spec"]["replicas"] == 0


async def test_delete_options(client):
    await client.created()
    body = envelope("v1", "DeleteOptions", block(2, block(1, "other-uid")) + block(4, "Background"))
    media = "application/vnd.kubernetes.protobuf"
    assert (await client("DELETE", f"{DEPLOYMENTS}/web", body, Content_Type=media)).status == 409


def test_negative_numbers():
    body = envelope("autoscaling/v1", "Scale", block(2, varint(1, -3)))
    assert decode(body)["spec"] == {"replicas": -3}


@given(st.binary(max_size=80))
def test_any_bytes_are_an_object_or_a_400(data):
    for body in (MAGIC + data, envelope("apps/v1", "Deployment", data), envelope("v1", "Pod", data)):
        try:
            assert isinstance(decode(body), dict)
        except ApiError as error:
            assert error.code == 400
