"""Services, as a client sees them."""

import pytest

SERVICES = "/api/v1/namespaces/default/services"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def service(name="web", **spec):
    wanted = {"selector": {"app": "web"}, "ports": [{"port": 80}]} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": wanted}


async def test_defaults_and_table(client):
    made = await client("POST", SERVICES, service())
    assert made.status == 201
    spec = made.body["spec"]
    assert (spec["type"], spec["sessionAffinity"]) == ("ClusterIP", "None") and "clusterIP" not in spec
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    await client("POST", SERVICES, service("headless", clusterIP="None", ports=[]))
    table = (await client("GET", SERVICES, Accept=TABLE)).body
    cells = {row["cells"][0]: row["cells"][1:] for row in table["rows"]}
    assert cells["web"][:4] == ["ClusterIP", "<none>", "<none>", "80/TCP"] and cells["web"][5] == "app=web"
    assert cells["headless"][:4] == ["ClusterIP", "None", "<none>", "<none>"]


async def test_a_name_elsewhere_and_a_client_that_stays(client):
    await client(
        "POST", SERVICES, service("far", type="ExternalName", externalName="db.example.com", ports=[])
    )
    made = await client("POST", SERVICES, service("near", sessionAffinity="ClientIP"))
    assert (made.status, made.body["spec"]["sessionAffinity"]) == (201, "ClientIP")
    table = (await client("GET", SERVICES, Accept=TABLE)).body
    cells = {row["cells"][0]: row["cells"][1:] for row in table["rows"]}
    assert cells["far"][:4] == ["ExternalName", "<none>", "db.example.com", "<none>"]


async def test_a_port_is_merged_by_its_number(client):
    await client("POST", SERVICES, service())
    patch = {"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}
    answer = await client(
        "PATCH", f"{SERVICES}/web", patch, Content_Type="application/strategic-merge-patch+json"
    )
    assert answer.body["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": "http"}]


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (service(type="NodePort"), "spec.type"),
        (service(type="LoadBalancer"), "spec.type"),
        (service(type="Sudden"), "spec.type"),
        (service(clusterIP="10.0.0.1"), "spec.clusterIP"),
        (service(clusterIPs=["10.0.0.1"]), "spec.clusterIPs[0]"),
        (service(externalIPs=["192.0.2.1"]), "spec.externalIPs"),
        (service(externalName="example.com"), "spec.externalName"),
        (service(type="ExternalName"), "spec.externalName"),
        (service(type="ExternalName", externalName="no name"), "spec.externalName"),
        (service(type="ExternalName", externalName="example.com", clusterIP="None"), "spec.clusterIP"),
        (service(sessionAffinity="Sticky"), "spec.sessionAffinity"),
        (service(internalTrafficPolicy="Nearby"), "spec.internalTrafficPolicy"),
        (
            service(
                sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}}
            ),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        (
            service(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}}),
            "spec.sessionAffinityConfig",
        ),
        (service(ports=[]), "spec.ports"),
        (service(ports=[{"port": 0}]), "spec.ports[0].port"),
        (service(ports=[{"port": 80, "targetPort": 70000}]), "spec.ports[0].targetPort"),
        (service(ports=[{"port": 80, "targetPort": "no_name"}]), "spec.ports[0].targetPort"),
        (service(ports=[{"port": 80, "protocol": "SCTP"}]), "spec.ports[0].protocol"),
        (service(ports=[{"port": 80, "nodePort": 30000}]), "spec.ports[0].nodePort"),
        (service(ports=[{"port": 80, "name": "a"}, {"port": 81}]), "spec.ports[1].name"),
        (service(ports=[{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]), "spec.ports[1].name"),
        (service(ports=[{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]), "spec.ports[1]"),
        (service(selector={"a b": "c"}), "spec.selector"),
        (service("1web"), "metadata.name"),
    ],
)
async def test_what_is_wrong_is_named(client, obj, field):
    answer = await client("POST", SERVICES, obj)
    assert answer.status == 422
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == [field]
