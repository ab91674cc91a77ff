"""What people type every day, with every kubectl at hand, over TLS."""

import json
from functools import partial
from subprocess import PIPE

import pytest
import trio

WEB = b"""
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: nginx:1.25
        ports: [{containerPort: 80}]
        resources: {limits: {cpu: 500m, memory: 64Mi}}
"""
POD = b"""
apiVersion: v1
kind: Pod
metadata: {name: lone}
spec:
  containers: [{name: main, image: busybox, command: [sleep, "1000"]}]
"""


async def test_version_and_what_there_is(kubectl):
    version = json.loads((await kubectl("version", "-o", "json")).out)
    assert version["serverVersion"]["minor"] == "32"
    resources = (await kubectl("api-resources")).out
    for word in ("deployments", "deploy", "pods", "nodes", "namespaces", "replicasets", "events"):
        assert word in resources.split()
    assert "apps/v1" in (await kubectl("api-versions")).out.split()
    nodes = (await kubectl("get", "nodes", "-o", "wide")).out
    assert "m0" in nodes and "Ready" in nodes and "crun://1.8" in nodes


async def test_create_from_a_file_and_look_at_it(kubectl):
    out = (await kubectl("create", "-f", "-", stdin=WEB)).out
    assert out.strip() == "deployment.apps/web created"
    header, row = (await kubectl("get", "deployments")).out.splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row.split()[:4] == ["web", "2/2", "2", "2"]
    assert "nginx:1.25" in (await kubectl("get", "deploy", "web", "-o", "wide")).out
    assert (await kubectl("get", "deploy", "-o", "name")).out.strip() == "deployment.apps/web"
    assert json.loads((await kubectl("get", "deploy", "web", "-o", "json")).out)["spec"]["replicas"] == 2
    assert "image: nginx:1.25" in (await kubectl("get", "deploy", "web", "-o", "yaml")).out
    everything = (await kubectl("get", "pods", "-A", "-l", "app=web", "-o", "wide", "--show-labels")).out
    assert everything.count("Running") == 2 and "app=web" in everything and "m0" in everything
    assert "web-" in (await kubectl("get", "all")).out
    assert "No resources found" in (await kubectl("get", "pods", "-l", "app=other")).err
    again = await kubectl("create", "-f", "-", stdin=WEB, ok=False)
    assert again.status == 1 and "AlreadyExists" in again.err


async def test_create_deployment_by_words(kubectl):
    await kubectl("create", "deployment", "quick", "--image=nginx:1.25", "--replicas=3", "--port=80")
    made = json.loads((await kubectl("get", "deploy", "quick", "-o", "json")).out)
    assert made["spec"]["replicas"] == 3
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["ports"][0]["containerPort"]) == ("nginx:1.25", 80)
    assert made["spec"]["selector"] == {"matchLabels": {"app": "quick"}}
    await kubectl("create", "namespace", "other")
    assert "other" in (await kubectl("get", "ns", "-o", "name")).out
    await kubectl("run", "lone", "--image=busybox", "-n", "other")
    assert "lone" in (await kubectl("get", "pods", "-n", "other")).out


async def test_apply_twice_then_changed(kubectl):
    assert "created" in (await kubectl("apply", "-f", "-", stdin=WEB)).out
    assert "unchanged" in (await kubectl("apply", "-f", "-", stdin=WEB)).out
    changed = WEB.replace(b"replicas: 2", b"replicas: 4").replace(b"1.25", b"1.26")
    difference = await kubectl("diff", "-f", "-", stdin=changed, ok=False)
    assert difference.status == 1 and "+  replicas: 4" in difference.out, difference
    assert "configured" in (await kubectl("apply", "-f", "-", stdin=changed)).out
    made = json.loads((await kubectl("get", "deploy", "web", "-o", "json")).out)
    assert made["spec"]["replicas"] == 4
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "nginx:1.26"
    assert (await kubectl("diff", "-f", "-", stdin=changed)).out == ""


async def test_server_side_apply_and_its_conflict(kubectl):
    assert "serverside-applied" in (await kubectl("apply", "--server-side", "-f", "-", stdin=WEB)).out
    assert "serverside-applied" in (await kubectl("apply", "--server-side", "-f", "-", stdin=WEB)).out
    await kubectl("scale", "deploy/web", "--replicas=5")
    refused = await kubectl("apply", "--server-side", "-f", "-", stdin=WEB, ok=False)
    assert refused.status == 1 and "conflict" in refused.err and ".spec.replicas" in refused.err
    await kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=WEB)
    made = json.loads((await kubectl("get", "deploy", "web", "-o", "json")).out)
    assert made["spec"]["replicas"] == 2


async def test_server_side_apply_over_a_client_side_one(kubectl):
    await kubectl("apply", "-f", "-", stdin=WEB)
    await kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=WEB)


async def test_describe(kubectl):
    await kubectl("apply", "-f", "-", stdin=WEB)
    text = (await kubectl("describe", "deployment", "web")).out
    assert "2 desired | 2 updated | 2 total | 2 available" in text
    assert "ScalingReplicaSet" in text and "NewReplicaSet" in text
    assert "nginx:1.25" in (await kubectl("describe", "pods")).out
    assert "Non-terminated Pods" in (await kubectl("describe", "node", "m0")).out
    assert "Scaled up" in (await kubectl("get", "events")).out


async def test_scale_set_image_label_annotate(kubectl):
    await kubectl("create", "-f", "-", stdin=WEB)
    assert "scaled" in (await kubectl("scale", "deployment", "web", "--replicas=3")).out
    wrong = await kubectl("scale", "deployment", "web", "--current-replicas=9", "--replicas=1", ok=False)
    assert "Expected replicas to be 9, was 3" in wrong.err
    await kubectl("scale", "deployment", "web", "--current-replicas=3", "--replicas=1")
    assert "image updated" in (await kubectl("set", "image", "deploy/web", "main=nginx:1.27")).out
    assert "labeled" in (await kubectl("label", "deploy", "web", "tier=front")).out
    assert "annotated" in (await kubectl("annotate", "deploy", "web", "note=hello world")).out
    await kubectl("label", "deploy", "web", "app-")
    await kubectl("rollout", "restart", "deploy/web")
    await kubectl("set", "env", "deploy/web", "COLOR=blue")
    made = json.loads((await kubectl("get", "deploy", "web", "-o", "json")).out)
    assert made["metadata"]["labels"] == {"tier": "front"}
    assert made["metadata"]["annotations"]["note"] == "hello world"
    assert made["spec"]["replicas"] == 1
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["env"]) == ("nginx:1.27", [{"name": "COLOR", "value": "blue"}])


async def test_rollout_status_wait_and_delete(kubectl):
    await kubectl("apply", "-f", "-", stdin=WEB)
    assert "successfully rolled out" in (await kubectl("rollout", "status", "deploy/web")).out
    assert (
        "condition met"
        in (await kubectl("wait", "--for=condition=Available", "deploy/web", "--timeout=10s")).out
    )
    assert (
        "condition met"
        in (await kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=10s")).out
    )
    late = await kubectl("wait", "--for=delete", "deploy/web", "--timeout=1s", ok=False)
    assert late.status == 1 and "timed out" in late.err
    assert 'deployment.apps "web" deleted' in (await kubectl("delete", "deploy", "web")).out
    gone = await kubectl("get", "deploy", "web", ok=False)
    assert gone.err.strip() == 'Error from server (NotFound): deployments.apps "web" not found'
    assert "No resources found" in (await kubectl("get", "pods")).err
    await kubectl("create", "-f", "-", stdin=POD)
    await kubectl("delete", "pods", "--all", "--wait=true")
    assert (await kubectl("get", "pods", "-o", "name")).out == ""


async def test_watch_ends_with_its_client(kubectl):
    await kubectl("create", "-f", "-", stdin=WEB)
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_watching, kubectl)
            received = b""
            await kubectl("scale", "deploy/web", "--replicas=1")
            while b"1/1" not in received:
                received += await process.stdout.receive_some()
            process.kill()
            nursery.cancel_scope.cancel()
    assert received.decode().count("NAME") == 1
    with trio.fail_after(5):
        await kubectl.backend.until_watches(0)


async def _watching(kubectl, task_status=trio.TASK_STATUS_IGNORED):
    environment = {"KUBECONFIG": str(kubectl.home / "config"), "HOME": str(kubectl.home)}
    words = [kubectl.program, "get", "deploy", "-w"]
    run = partial(trio.run_process, words, stdout=PIPE, env=environment, check=False)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run)
        await kubectl.backend.until_watches(1)
        task_status.started(process)


async def test_logs(kubectl):
    await kubectl("create", "-f", "-", stdin=POD)
    assert (await kubectl("logs", "lone")).out == "one\ntwo\nthree\n"
    assert (await kubectl("logs", "lone", "--tail=1")).out == "three\n"
    kubectl.backend.log_more = 0.2
    assert (await kubectl("logs", "-f", "lone")).out.endswith("more\n")
    missing = await kubectl("logs", "lone", "-c", "nope", ok=False)
    assert "container nope is not valid for pod lone" in missing.err
    await kubectl("create", "-f", "-", stdin=WEB)
    assert "one" in (await kubectl("logs", "deploy/web")).out


async def test_reviews_and_explain(kubectl):
    assert (await kubectl("auth", "can-i", "create", "deployments")).out.strip() == "yes"
    assert "*.*" in (await kubectl("auth", "can-i", "--list")).out
    if kubectl.release >= (1, 28):
        assert "magik:operator" in (await kubectl("auth", "whoami")).out
    if kubectl.release >= (1, 29):
        text = (await kubectl("explain", "deployment.spec.strategy")).out
        assert "rollingUpdate" in text, text


async def test_mistakes_are_told_in_one_line(kubectl):
    invalid = await kubectl(
        "create", "-f", "-", stdin=WEB.replace(b"name: web\n", b"name: Web_1\n"), ok=False
    )
    assert invalid.status == 1 and 'The Deployment "Web_1" is invalid: metadata.name' in invalid.err
    if kubectl.release >= (1, 29):
        unknown = await kubectl("create", "-f", "-", stdin=WEB.replace(b"replicas:", b"replicsa:"), ok=False)
        assert 'unknown field "spec.replicsa"' in unknown.err
    kind = await kubectl(
        "create", "-f", "-", stdin=WEB.replace(b"kind: Deployment", b"kind: Nonsense"), ok=False
    )
    assert 'no matches for kind "Nonsense" in version "apps/v1"' in kind.err
    assert "doesn't have a resource type" in (await kubectl("get", "unicorns", ok=False)).err
    streams = await kubectl("exec", "lone", "--", "true", ok=False)
    assert streams.status != 0


@pytest.mark.parametrize("policy", ["background", "foreground", "orphan"])
async def test_delete_with_every_policy(kubectl, policy):
    await kubectl("create", "-f", "-", stdin=WEB)
    await kubectl("delete", "deploy/web", f"--cascade={policy}", timeout=20)


async def test_dry_run_keeps_nothing(kubectl):
    assert "server dry run" in (await kubectl("apply", "--dry-run=server", "-f", "-", stdin=WEB)).out
    assert (await kubectl("get", "deploy", "-o", "name")).out == ""
