"""What an agent is told, and what it may have done: the desk between its door, the runtime and the fabric."""

import base64
from uuid import UUID

import attrs
import pytest
import trio
from fabric_support import FakeMachine, Wall, deployment, mirror, new_view, record, stateful_set

from machineplane.agentdesk import AgentDesk
from machineplane.agents import LeaderSaid, Refusal, Standing, StatusReport
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.pods import Attachment
from machineplane.fabric.services import AGENT, LEADER, Services
from machineplane.podagents import PodAgents, environment_of, wrong_annotation
from machineplane.runtime import AgentSaid, ContainerStatus, PodNotFound, PodStatus
from magik_proto import signing
from magik_proto.identity import Identity
from magik_proto.membership import MembershipPolicy, RootKey
from magik_proto.messages import Award, encode_message
from magik_proto.passes import PassPolicy

NOW = 1_800_000_000_000
OWNER, MACHINE, KEY, OTHER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))
ROOT = RootKey.from_seed(b"\x21" * 32)
POD_UID = str(UUID(int=7))


class Runtime:
    """Has the pods that it is given, and the word of the agents."""

    def __init__(self, *pods):
        self.pods = {pod.uid: pod for pod in pods}
        self.keys, self.words, self.restarts = {}, [], []

    def get(self, uid):
        try:
            return self.pods[uid]
        except KeyError:
            raise PodNotFound(f"no pod {uid}") from None

    def claim_key(self, uid, key):
        return self.keys.setdefault(uid, key) == key

    def report(self, uid, words):
        self.get(uid)
        self.words.append(words)

    def restart_container(self, uid, container, reason):
        self.restarts.append((uid, container, reason))


class Node:
    """Knows the memberships of those it is connected to."""

    def __init__(self, shown=None):
        self._shown = shown or {}

    def shown(self, peer):
        return self._shown.get(peer)


def award_of(workload, **changes):
    made = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=MACHINE.peer_id,
        resource=workload.resource,
        uid=workload.uid,
        generation=workload.generation,
        replicas=2,
        manifest_digest=workload.digest,
        sealed_digest=bytes(32),
        timestamp=NOW,
        nonce=1,
        **changes,
    )
    return encode_message(attrs.evolve(made, signature=OWNER.sign(signing.signed_bytes(made))))


def annotated(obj, **annotations):
    obj["metadata"]["annotations"] = {f"magik.io/{k.replace('_', '-')}": v for k, v in annotations.items()}
    return obj


class Bench:
    """One pod of a workload, and what is behind its agent."""

    def __init__(
        self, obj=None, *, member=None, shown=None, root=ROOT.peer_id, award=None, name="web-5f-x7b"
    ):
        wall = Wall()
        self.machine = FakeMachine(2, wall)
        self.view = new_view(MACHINE.peer_id, wall)
        self.services = Services(self.view)
        self.view.on_change = self.services.changed
        self.workload = record(obj or deployment(), OWNER)
        attachment = Attachment(self.workload, "0123456789", "crun", award or award_of(self.workload), member)
        labels = {"app": "web", "apps.kubernetes.io/pod-index": "1"}
        self.pod = PodStatus(
            uid=POD_UID,
            name=name,
            namespace="default",
            pod={
                "metadata": {"uid": POD_UID, "name": name, "namespace": "default", "labels": labels},
                "spec": {},
            },
            attachment=attachment.to_bytes(),
            containers=(
                ContainerStatus(name="main", image="x", id="abc", state="running"),
                ContainerStatus(name="gone", image="x", id="def", state="terminated"),
            ),
            agent_port=31000,
        )
        self.attachment = attachment
        self.runtime = Runtime(self.pod)
        self.holdings = Holdings()
        self.looked = []
        self.read = []
        self.desk = AgentDesk(
            runtime=self.runtime,
            node=Node(shown),
            view=self.view,
            services=self.services,
            holdings=self.holdings,
            identity=MACHINE,
            policy=MembershipPolicy(root),
            addresses=("192.0.2.2", "2001:db8::2"),
            zone="here",
            wall=lambda: NOW,
            look=self.look,
            read_service=self.read_service,
        )

    async def read_service(self, namespace, name):
        self.read.append((namespace, name))

    async def look(self, uid):
        self.looked.append(uid)
        return False

    def hold(self, obj):
        self.machine.hold(record(obj, OWNER))
        mirror(self.view, self.machine)


def member():
    return ROOT.invite(NOW).accept(OWNER, NOW).encode()


@pytest.mark.parametrize("known", ["kept", "shown"])
async def test_a_pass_holds_before_any_other_pod(known):
    bench = Bench(**({"member": member()} if known == "kept" else {"shown": {OWNER.peer_id: member()}}))
    answer = await bench.desk.passport(POD_UID, KEY.peer_id)
    policy = PassPolicy(MembershipPolicy(ROOT.peer_id), "default")
    found = policy.check(KEY.peer_id, base64.b64decode(answer["pass"]), NOW)
    assert (found.pod_name, found.uid, found.machine) == ("web-5f-x7b", bench.workload.uid, MACHINE.peer_id)
    assert answer["root"] == str(ROOT.peer_id) and answer["zone"] == "here"
    assert answer["advertise"] == ["192.0.2.2:31000", "[2001:db8::2]:31000"]
    assert (answer["uid"], answer["generation"], answer["replicas"]) == (str(bench.workload.uid), 1, 3)
    assert answer["pod"]["status"]["containerStatuses"][0]["name"] == "main"


async def test_a_stateful_set_s_pass_names_the_ordinal():
    workload = record(stateful_set(), OWNER)
    bench = Bench(stateful_set(), member=member(), name="db-1", award=award_of(workload, ordinals=(1, 2)))
    answer = await bench.desk.passport(POD_UID, KEY.peer_id)
    policy = PassPolicy(MembershipPolicy(ROOT.peer_id), "default")
    assert policy.check(KEY.peer_id, base64.b64decode(answer["pass"]), NOW).ordinal == 1


async def test_another_key_gets_no_pass():
    bench = Bench(member=member())
    first = await bench.desk.passport(POD_UID, KEY.peer_id)
    again = await bench.desk.passport(POD_UID, KEY.peer_id)
    assert first["pass"] != again["pass"]  # made anew, by another nonce
    with pytest.raises(Refusal) as refused:
        await bench.desk.passport(POD_UID, OTHER.peer_id)
    assert (refused.value.code, refused.value.reason) == (409, "Conflict")


async def test_in_an_open_fabric_a_pass_rests_on_no_membership():
    bench = Bench(root=None)
    answer = await bench.desk.passport(POD_UID, KEY.peer_id)
    assert answer["root"] is None
    policy = PassPolicy(MembershipPolicy(None), "default")
    assert policy.check(KEY.peer_id, base64.b64decode(answer["pass"]), NOW).pod_name == "web-5f-x7b"


def service(name, namespace="default", **selector):
    ports = [{"port": 80, "targetPort": "http", "name": "http"}, {"port": 53, "protocol": "UDP"}]
    metadata = {"name": name, "namespace": namespace, "annotations": {"magik.io/balance": "zone"}}
    spec = {"selector": selector, "ports": ports, "clusterIP": "None"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


async def test_the_state_is_of_the_own_pod_and_workload():
    bench = Bench()
    bench.hold(service("web", app="web"))
    bench.hold(service("other", app="else"))
    bench.hold(deployment())
    elsewhere = record(deployment("more"), OWNER)
    bench.machine.hold(elsewhere)
    for number in range(30):
        place = {AGENT: f"{KEY.peer_id}@192.0.2.{number}:1"}
        bench.machine.run(elsewhere, f"u{number}", annotations=place)
    mirror(bench.view, bench.machine)
    state = bench.desk.state(POD_UID)
    assert state["containers"] == {"main": "abc"} and not state["disposed"] and not state["terminating"]
    assert (state["generation"], state["replicas"], state["revocations"]) == (1, 3, None)
    assert state["services"] == [
        {
            "name": "web",
            "namespace": "default",
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "target": "http"},
                {"name": "", "port": 53, "protocol": "UDP", "target": 53},
            ],
            "workloads": ["default/Deployment/web"],
            "headless": True,
            "annotations": {"magik.io/balance": "zone"},
        }
    ]
    assert len(set(state["bootstrap"])) == 16 and state == bench.desk.state(POD_UID)
    bench.view.dispose(str(bench.workload.uid))
    assert bench.desk.state(POD_UID)["disposed"]


async def test_services_of_other_namespaces_are_for_those_that_may_meet_them():
    bench = Bench()
    bench.hold(service("web", "shop", app="web"))
    bench.hold(service("own", app="web"))
    assert (await bench.desk.service(POD_UID, "default", "own"))["name"] == "own"
    for namespace, name in (("shop", "web"), ("default", "none")):
        with pytest.raises(Refusal) as refused:
            await bench.desk.service(POD_UID, namespace, name)
        assert refused.value.code == 404
    assert bench.read == [("default", "own"), ("default", "none")], "what is not for it is not looked for"
    bench = Bench(annotated(deployment(), allow_cross_namespace="true"))
    bench.hold(service("web", "shop", app="web"))
    assert (await bench.desk.service(POD_UID, "shop", "web"))["namespace"] == "shop"


async def test_what_the_agent_says_reaches_the_runtime():
    bench = Bench()
    said = StatusReport(
        containers={"main": Standing(True, True)}, peer=KEY.peer_id, port=4701, leader=LeaderSaid(1, 9)
    )
    bench.desk.report(POD_UID, said)
    (words,) = bench.runtime.words
    assert words.containers["main"].ready
    assert words.agent == AgentSaid(peer=str(KEY.peer_id), port=4701, leads=(1, 9))
    bench.desk.report(POD_UID, StatusReport())
    assert bench.runtime.words[1].agent is None  # it has no place yet: nothing is forgotten for that
    with pytest.raises(Refusal):
        bench.desk.report("another", said)


async def test_an_agent_s_place_and_lease_are_shown():
    bench = Bench()
    agent = AgentSaid(peer=str(KEY.peer_id), port=4701, leads=(1, 9))
    marks = bench.desk.marks(attrs.evolve(bench.pod, agent=agent))
    assert marks.labels == {LEADER: "true"}
    assert marks.annotations == {AGENT: f"{KEY.peer_id}@192.0.2.2:31000", LEADER: "1/9"}
    alone = attrs.evolve(bench.pod, agent=attrs.evolve(agent, leads=None), agent_port=0, ip="10.64.0.2")
    marks = bench.desk.marks(alone)
    assert not marks.labels and marks.annotations == {AGENT: f"{KEY.peer_id}@10.64.0.2:4701"}
    assert not bench.desk.marks(bench.pod).annotations


async def test_healing_asks_for_the_own_workload_alone_and_not_for_what_is_deleted():
    bench = Bench()
    assert await bench.desk.heal(POD_UID, 2, 1) is False
    assert bench.looked == [bench.workload.uid]
    bench.view.dispose(str(bench.workload.uid))
    assert await bench.desk.heal(POD_UID, 2, 1) is True
    assert bench.looked == [bench.workload.uid]


async def test_a_pod_that_is_gone_has_nothing():
    bench = Bench()
    with pytest.raises(Refusal) as refused:
        bench.desk.state("another")
    assert refused.value.code == 404
    with pytest.raises(Refusal) as refused:
        await bench.desk.service("another", "default", "x")
    assert refused.value.code == 404
    with pytest.raises(Refusal), trio.fail_after(5):
        await bench.desk.heal("another", 1, 1)


def test_the_agent_s_variables():
    attachment = Bench(annotated(deployment(replicas=0), deny_workloads="shop/*")).attachment
    found = environment_of(attachment, "web-1", None)
    assert found == {
        "BEE_NAMESPACE": "default",
        "BEE_WORKLOAD_KIND": "Deployment",
        "BEE_WORKLOAD_NAME": "web",
        "BEE_POD_NAME": "web-1",
        "BEE_REPLICAS": "1",
        "BEE_LISTEN_ADDRS": "0.0.0.0:4701",
        "BEE_MACHINE_API": "unix:/run/magik/agent/machine.sock",
        "BEE_DENY_WORKLOADS": "shop/*",
    }
    assert environment_of(attachment, "web-1", 4702) == found | {"BEE_REDIRECT_PORT": "4702"}


@pytest.mark.parametrize(
    ("annotations", "wrong"),
    [
        ({}, False),
        (
            {"magik.io/allow-cross-namespace": "true", "magik.io/allow-workloads": "a/Deployment/*, b/*"},
            False,
        ),
        ({"magik.io/allow-cross-namespace": "yes"}, True),
        ({"magik.io/deny-workloads": "a;b"}, True),
        ({"magik.io/allow-workloads": "a\0"}, True),
        ({"magik.io/allow-workloads": "x" * 256}, True),
    ],
)
def test_annotations_that_no_agent_could_read_are_refused(annotations, wrong):
    found = wrong_annotation(annotations)
    assert bool(found) == wrong
    assert found is None or "metadata.annotations[magik.io/" in found


@pytest.mark.parametrize(
    ("index", "founder", "founds"), [("0", True, True), ("1", True, False), ("0", False, False)]
)
def test_ordinal_0_of_the_award_that_says_so_founds_its_set(index, founder, founds):
    bench = Bench(stateful_set())
    labels = {"apps.kubernetes.io/pod-index": index}
    pod = attrs.evolve(
        bench.pod,
        pod={"metadata": {"labels": labels}, "spec": {}},
        attachment=attrs.evolve(bench.attachment, founder=founder).to_bytes(),
    )
    assert PodAgents(lambda: NOW).founds(pod) is founds


async def test_what_a_service_says_of_affinity_readiness_and_locality_reaches_agents():
    bench = Bench()
    plain, special = service("plain", app="web"), service("special", app="web")
    special["spec"] |= {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "publishNotReadyAddresses": True,
        "internalTrafficPolicy": "Local",
    }
    bench.hold(plain)
    bench.hold(special)
    names = ("affinity", "affinity_s", "unready", "local")
    said = await bench.desk.service(POD_UID, "default", "special")
    assert [said[name] for name in names] == ["ClientIP", 60, True, True]
    assert not set(names) & set(await bench.desk.service(POD_UID, "default", "plain"))
