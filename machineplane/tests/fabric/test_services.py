"""Which workloads a Service selects, and which agents of a namespace are known."""

from fabric_support import FakeMachine, Wall, deployment, identity, mirror, new_view, record, stateful_set

from machineplane.fabric.services import AGENT, Services


def service(name="web", namespace="default", **selector):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": selector, "ports": [{"port": 80}]},
    }


class Bench:
    """A view of one machine, with its index."""

    def __init__(self):
        wall = Wall()
        self.machine = FakeMachine(1, wall)
        self.view = new_view(self.machine.id, wall)
        self.services = Services(self.view)
        self.touched = []
        self.view.on_change = lambda group: self.touched.append(self.services.changed(group))

    def hold(self, obj, **options):
        made = record(obj, identity(1), **options)
        self.machine.hold(made)
        return made

    def look(self):
        mirror(self.view, self.machine)


def test_a_service_selects_workloads_of_its_namespace_by_their_templates_labels():
    bench = Bench()
    bench.hold(service(app="web"))
    bench.hold(deployment("web"))
    other = deployment("web")
    other["metadata"]["namespace"] = "shop"
    bench.hold(other)
    database = stateful_set("db")
    database["spec"]["template"]["metadata"]["labels"]["app"] = "web"
    bench.hold(database)
    bench.hold(deployment("else"))
    bench.look()
    found = bench.services.named("default", "web")
    assert bench.services.workloads(found) == ("default/Deployment/web", "default/StatefulSet/db")
    assert set(bench.touched) == {"default", "shop"}


def test_a_service_without_a_selector_selects_nothing():
    bench = Bench()
    bench.hold(service())
    bench.hold(deployment("web"))
    bench.look()
    assert bench.services.workloads(bench.services.named("default", "web")) == ()
    assert bench.services.selecting("default", {"app": "web"}) == []


def test_the_services_of_a_pod_follow_changes_and_deletes():
    bench = Bench()
    first = bench.hold(service(app="web"))
    bench.hold(service("more", app="web", tier="front"))
    bench.look()

    def names():
        return [s["metadata"]["name"] for s in bench.services.selecting("default", {"app": "web"})]

    assert names() == ["web"]
    bench.hold(service(app="other"), uid=first.uid, generation=2, stamp=2)
    bench.look()
    assert names() == []
    bench.hold(service(app="web"), uid=first.uid, generation=3, stamp=3)
    bench.look()
    assert names() == ["web"]
    bench.view.dispose(str(first.uid))
    assert names() == [] and bench.services.named("default", "web") is None
    assert bench.touched[-1] == "default"


def test_agents_are_known_while_their_pods_are():
    bench = Bench()
    workload = bench.hold(deployment("web"))
    bench.machine.run(workload, "u1", annotations={AGENT: "aa@192.0.2.1:4001"})
    bench.machine.run(workload, "u2")
    bench.look()
    assert bench.services.agents("default") == {"u1": "aa@192.0.2.1:4001"}
    assert bench.services.agents("shop") == {}
    bench.machine.table.remove(("pod", "u1"))
    bench.look()
    assert bench.services.agents("default") == {}


def test_nothing_is_kept_of_what_is_gone():
    bench = Bench()
    workload = bench.hold(deployment("web"))
    bench.machine.run(workload, "u1", annotations={AGENT: "aa@192.0.2.1:4001"})
    bench.look()
    bench.machine.table.remove(("workload", str(workload.uid)))
    bench.look()
    assert bench.services.agents("default")  # its pod is still there
    bench.machine.table.remove(("pod", "u1"))
    bench.look()
    assert not bench.services._spaces and not bench.services._places
