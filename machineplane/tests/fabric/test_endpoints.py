"""Endpoints and EndpointSlices, as they are derived from a view."""

from fabric_support import FakeMachine, Wall, deployment, identity, mirror, new_view, record

from machineplane.fabric.endpoints import Endpoints
from machineplane.fabric.objects import render
from machineplane.fabric.services import Services


class Bench:
    """A machine's view, which shows what is derived too."""

    def __init__(self):
        wall = Wall()
        self.machine = FakeMachine(1, wall)
        self.view = new_view(self.machine.id, wall)
        self.services = Services(self.view)
        self.endpoints = Endpoints(self.view, self.services)
        self.view.render = lambda group: (
            self.endpoints.render(group) if group.startswith("endpoints/") else render(self.view, group)
        )
        self.view.on_change = self.changed

    def changed(self, group):
        self.view.refresh(self.endpoints.changed(group, self.services.changed(group)))

    def service(self, **spec):
        wanted = {
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http", "name": "www"}],
        } | spec
        metadata = {"name": "web", "namespace": "default", "uid": "u-service"}
        made = record(
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": wanted}, identity(1)
        )
        self.machine.hold(made)
        mirror(self.view, self.machine)
        return made

    def workload(self):
        obj = deployment()
        obj["spec"]["template"]["spec"]["containers"][0]["ports"] = [{"name": "http", "containerPort": 8080}]
        made = record(obj, identity(1))
        self.machine.hold(made)
        return made

    def run(self, workload, uid, ip, **options):
        self.machine.run(workload, uid, labels={"app": "web"}, **options)
        entry = next(e for e in self.machine.table.entries("pod") if e.key[1] == uid)
        text = entry.value["json"].replace(b'"phase":', f'"podIP":"{ip}","phase":'.encode())
        self.machine.table.put(("pod", uid), {**entry.value, "json": text})
        mirror(self.view, self.machine)

    def shown(self, kind):
        return [obj for (k, _, _), obj in sorted(self.view.rendered.items()) if k == kind]


def test_pods_behind_a_service_are_listed_by_readiness():
    bench = Bench()
    workload = bench.workload()
    bench.service()
    bench.run(workload, "u1", "10.0.0.1")
    bench.run(workload, "u2", "10.0.0.2", ready=False)
    bench.run(workload, "u3", "10.0.0.3", deletionTimestamp="2027-01-15T08:00:00Z")
    (endpoints,) = bench.shown("Endpoints")
    (subset,) = endpoints["subsets"]
    assert [a["ip"] for a in subset["addresses"]] == ["10.0.0.1"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["10.0.0.2", "10.0.0.3"]
    assert subset["ports"] == [{"name": "www", "port": 8080, "protocol": "TCP"}]
    assert subset["addresses"][0]["targetRef"]["name"] == "web-u1"
    (cut,) = bench.shown("EndpointSlice")
    assert cut["metadata"]["labels"]["kubernetes.io/service-name"] == "web"
    ready = {one["addresses"][0]: one["conditions"] for one in cut["endpoints"]}
    assert ready["10.0.0.1"] == {"ready": True, "serving": True, "terminating": False}
    assert ready["10.0.0.3"] == {"ready": False, "serving": False, "terminating": True}
    assert cut["ports"] == [{"name": "www", "port": 8080, "protocol": "TCP"}]


def test_they_follow_pods_and_the_service():
    bench = Bench()
    workload = bench.workload()
    service = bench.service()
    assert "subsets" not in bench.shown("Endpoints")[0] and len(bench.shown("EndpointSlice")) == 1
    bench.run(workload, "u1", "10.0.0.1")
    first = int(bench.shown("Endpoints")[0]["metadata"]["resourceVersion"])
    bench.machine.table.remove(("pod", "u1"))
    mirror(bench.view, bench.machine)
    (endpoints,) = bench.shown("Endpoints")
    assert "subsets" not in endpoints and int(endpoints["metadata"]["resourceVersion"]) > first
    bench.view.dispose(str(service.uid))
    assert not bench.shown("Endpoints") and not bench.shown("EndpointSlice")
    assert not bench.endpoints._stamps


def test_a_port_by_a_name_that_a_pod_does_not_have_is_left_out():
    bench = Bench()
    workload = bench.workload()
    bench.service(ports=[{"port": 80, "targetPort": "none"}, {"port": 81}])
    bench.run(workload, "u1", "10.0.0.1")
    assert bench.shown("Endpoints")[0]["subsets"][0]["ports"] == [{"port": 81, "protocol": "TCP"}]


def test_a_service_that_selects_nothing_has_none():
    bench = Bench()
    bench.service(selector={})
    assert not bench.shown("Endpoints") and not bench.shown("EndpointSlice")
