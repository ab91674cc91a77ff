"""ConfigMaps, Secrets and ServiceAccounts, as a client sees them."""

import base64

import pytest

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
SECRETS = "/api/v1/namespaces/default/secrets"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def config_map(**fields):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, **fields}


def secret(**fields):
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, **fields}


async def test_a_secrets_texts_go_into_its_data(client):
    made = await client(
        "POST", SECRETS, secret(stringData={"k": "pässword"}, data={"k": "AA==", "other": "AQ=="})
    )
    assert made.status == 201 and "stringData" not in made.body
    assert made.body["type"] == "Opaque"
    assert made.body["data"] == {"k": base64.b64encode("pässword".encode()).decode(), "other": "AQ=="}
    table = (await client("GET", SECRETS, Accept=TABLE)).body
    assert table["rows"][0]["cells"][:3] == ["s", "Opaque", 2]


async def test_put_and_patch(client):
    made = (await client("POST", CONFIG_MAPS, config_map(data={"a": "1"}))).body
    made["data"]["b"] = "2"
    assert (await client("PUT", f"{CONFIG_MAPS}/c", made)).body["data"] == {"a": "1", "b": "2"}
    patch = {"data": {"a": None, "c": "3"}}
    answer = await client("PATCH", f"{CONFIG_MAPS}/c", patch, Content_Type="application/merge-patch+json")
    assert answer.body["data"] == {"b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("path", "obj", "field"),
    [
        (CONFIG_MAPS, config_map(data={"a/b": "x"}), "data[a/b]"),
        (CONFIG_MAPS, config_map(data={"..": "x"}), "data[..]"),
        (CONFIG_MAPS, config_map(data={"a": "x"}, binaryData={"a": "AA=="}), "data"),
        (SECRETS, secret(type="kubernetes.io/tls", data={"tls.crt": "AA=="}), "data[tls.key]"),
    ],
)
async def test_what_is_wrong_is_named(client, path, obj, field):
    answer = await client("POST", path, obj)
    assert answer.status == 422
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == [field]


async def test_data_that_is_no_base64_is_refused(client):
    assert (await client("POST", SECRETS, secret(data={"k": "not base64!"}))).status == 400


async def test_what_is_immutable_stays(client):
    await client("POST", CONFIG_MAPS, config_map(data={"a": "1"}, immutable=True))
    for changed in (config_map(data={"a": "2"}, immutable=True), config_map(data={"a": "1"})):
        answer = await client("PUT", f"{CONFIG_MAPS}/c", changed)
        assert answer.status == 422 and "immutable" in answer.body["message"]
    await client("POST", SECRETS, secret(data={"a": "AA=="}))
    answer = await client("PUT", f"{SECRETS}/s", secret(data={"a": "AA=="}, type="other"))
    assert answer.status == 422 and answer.body["details"]["causes"][0]["field"] == "type"


async def test_service_accounts_are_kept(client):
    path = "/api/v1/namespaces/default/serviceaccounts"
    made = await client(
        "POST", path, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}}
    )
    assert made.status == 201
    assert (await client("GET", f"{path}/bot")).body["metadata"]["name"] == "bot"
