"""What a pod's spec says, in real containers: objects, volumes, users, seccomp, hooks, sidecars, limits of time and disk."""

import base64
import subprocess

import pytest
import trio

from machineplane.channels import RESIZE, STDIN, STDOUT
from machineplane.runtime import ExecRequest
from machineplane.runtime import limits as pod_limits

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery"
SAY = "until test -p /said; do sleep 0.02; done; echo "


def mount(name, path, **more):
    return {"name": name, "mountPath": path, **more}


async def run(bench, wanted, until, log, phase="Succeeded"):
    """Run a pod to its end; its output."""
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        assert status.message == "" and status.containers[-1].message == "", status
        status = await until(runtime, uid, lambda s: s.phase in ("Succeeded", "Failed"))
        text = await log(runtime, uid)
        assert status.phase == phase, text
        await runtime.stop_pod(uid)
    return text


def kept_open(path):
    """A log that is read after its pod, and with it its folder, is gone."""
    return open(path)


def on_disk(folder, text):
    """The files below a folder that hold a text."""
    found = subprocess.run(
        ["grep", "-rlF", "--", text, str(folder)], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


async def test_secrets_reach_the_container_and_no_disk(bench, engine, pod, until, log, eventually):
    bench.objects["Secret", "s"] = {"data": {"password": base64.b64encode(SECRET.encode()).decode()}}
    bench.objects["ConfigMap", "c"] = {"data": {"greeting": "hello"}}
    wanted = pod(
        "stat -c %a /secret/..data/password; cat /secret/password /one; echo; echo $PASSWORD $greeting; sleep 100",
        volumes=[
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
            {"name": "c", "configMap": {"name": "c"}},
        ],
        container={
            "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}}],
            "envFrom": [{"configMapRef": {"name": "c"}}],
            "volumeMounts": [mount("s", "/secret"), mount("c", "/one", subPath="greeting")],
        },
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        path = bench.config.pod_dir(uid) / "logs/main/0.log"
        await eventually(lambda: path.read_text().count("\n") == 3)
        assert await log(runtime, uid) == f"400\n{SECRET}hello\n{SECRET} hello\n"
        async with runtime.execute(
            uid, "main", ExecRequest(command=("sh", "-c", "echo $PASSWORD"))
        ) as session:
            assert await session.receive() == (STDOUT, f"{SECRET}\n".encode())
        assert on_disk(bench.folder, SECRET) == [str(path)]  # only what the container itself wrote out
        await runtime.stop_pod(uid, 0)


async def test_a_container_waits_for_what_it_refers_to(bench, engine, pod, until, log):
    wanted = pod(
        "echo $X",
        container={"env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]},
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        status = (await runtime.run_pod(wanted)).containers[0]
        assert (status.reason, status.message) == ("CreateContainerConfigError", 'configmap "c" not found')
        bench.objects["ConfigMap", "c"] = {"data": {"k": "there"}}
        await until(runtime, uid, lambda s: s.phase == "Succeeded")
        assert await log(runtime, uid) == "there\n"
        await runtime.stop_pod(uid)


async def test_volumes_follow_their_objects_as_a_whole(bench, engine, pod, log, eventually, monkeypatch):
    monkeypatch.setattr(pod_limits, "REFRESH_S", 0.05)
    bench.objects["ConfigMap", "c"] = {"data": {"a": "old", "gone": "x"}}
    wanted = pod(
        "while ! grep -q new /c/a; do sleep 0.05; done; echo /c/*; sleep 100",
        volumes=[{"name": "c", "configMap": {"name": "c"}}],
        container={"volumeMounts": [mount("c", "/c")]},
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        bench.objects["ConfigMap", "c"] = {"data": {"a": "new", "b": "y"}}
        await eventually((bench.config.pod_dir(uid) / "logs/main/0.log").read_text)
        assert await log(runtime, uid) == "/c/a /c/b\n"
        await runtime.stop_pod(uid, 0)


async def test_who_a_container_is_and_what_it_may(bench, pod, until, log):
    wanted = pod(
        "id -u; id -g; id -G; grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status | tr -d '\\t'; hostname;"
        "touch /x 2>/dev/null || echo read-only; touch /data/x && stat -c %g /data/x; ulimit -n >/dev/null;"
        "cat /proc/sys/net/ipv4/tcp_syncookies; tail -1 /etc/hosts; cat /etc/resolv.conf;"
        "unshare -m true 2>/dev/null || echo no",
        hostname="own",
        dnsPolicy="None",
        dnsConfig={"nameservers": ["192.0.2.53"]},
        hostAliases=[{"ip": "192.0.2.8", "hostnames": ["friend"]}],
        volumes=[{"name": "data", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        securityContext={
            "runAsUser": 1000,
            "runAsGroup": 2000,
            "fsGroup": 3000,
            "supplementalGroups": [4000],
            "sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}],
        },
        container={
            "volumeMounts": [mount("data", "/data")],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        },
    )
    text = (await run(bench, wanted, until, log)).splitlines()
    assert text[:3] == ["1000", "2000", "2000 3000 4000"]
    assert text[3:6] == ["CapEff:0000000000000000", "NoNewPrivs:1", "Seccomp:2"]
    assert text[6:9] == ["own", "read-only", "3000"]
    assert text[9:12] == ["0", "192.0.2.8\tfriend", "nameserver 192.0.2.53"] and text[-1] == "no"


@pytest.mark.parametrize("link", ["/etc", "../../../../../../../../etc", "/proc/self/root/etc"])
async def test_a_sub_path_that_is_a_link_does_not_lead_out(bench, pod, link):
    wanted = pod(
        "cat /stolen/hostname",
        volumes=[{"name": "v", "emptyDir": {}}],
        container={"volumeMounts": [mount("v", "/stolen", subPath="evil")]},
    )
    wanted["spec"]["initContainers"] = [
        {**wanted["spec"]["containers"][0], "name": "plant", "volumeMounts": [mount("v", "/v")]}
        | {"command": ["ln", "-s", link, "/v/evil"]}
    ]
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        main = status.containers[1]
        assert main.reason == "StartError" and "leads out of its volume" in main.message
        await runtime.stop_pod(status.uid, 0)


async def test_sub_paths_are_made_and_host_paths_mounted_by_policy(bench, pod, until, log):
    shared = bench.folder / "shared"
    (shared / "data").mkdir(parents=True)
    (shared / "data/file").write_text("of the machine\n")
    (shared / "out").symlink_to("/etc")
    bench.allow(host_paths=(str(shared),))
    host = {"name": "h", "hostPath": {"path": str(shared / "data"), "type": "Directory"}}
    wanted = pod(
        "cat /h/file; touch /h/no 2>/dev/null || echo read-only; echo x > /made/x; ls /whole/deep",
        volumes=[host, {"name": "v", "emptyDir": {}}],
        container={
            "volumeMounts": [
                mount("h", "/h", readOnly=True),
                mount("v", "/whole"),
                mount("v", "/made", subPath="deep/er"),
            ]
        },
    )
    assert await run(bench, wanted, until, log) == "of the machine\nread-only\ner\n"
    escape = pod("true", volumes=[{"name": "h", "hostPath": {"path": str(shared / "out")}}])
    escape["spec"]["containers"][0]["volumeMounts"] = [mount("h", "/h")]
    other = pod("true", volumes=[{"name": "h", "hostPath": {"path": "/etc"}}])
    async with bench.open() as runtime:
        status = await runtime.run_pod(escape)
        assert "leads out of its volume" in status.containers[0].message
        await runtime.stop_pod(status.uid, 0)
        status = await runtime.run_pod(other)
        assert (status.reason, "--allow-host-path" in status.message) == ("UnsupportedPod", True)
        await runtime.stop_pod(status.uid, 0)


async def test_hooks_run_after_the_start_and_before_the_end(bench, engine, pod, log, eventually):
    wanted = pod(
        "mkfifo /said; (while :; do cat /said; done) & trap 'echo term; exit 0' TERM; while :; do sleep 0.05; done",
        terminationGracePeriodSeconds=20,
        container={
            "lifecycle": {
                "postStart": {"exec": {"command": ["sh", "-c", SAY + "started > /said"]}},
                "preStop": {"exec": {"command": ["sh", "-c", SAY + "stopping > /said; sleep 0.2"]}},
            }
        },
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        path = bench.config.pod_dir(uid) / "logs/main/0.log"
        await eventually(path.read_text)
        with kept_open(path) as kept:
            await runtime.stop_pod(uid)
            assert [line.split()[-1] for line in kept] == ["started", "stopping", "term"]


async def test_a_failed_hook_ends_the_container(bench, engine, pod, until):
    hook = {"postStart": {"httpGet": {"port": 1, "path": "/"}}}
    wanted = pod("sleep 100", container={"lifecycle": hook})
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = (await until(runtime, uid, lambda s: s.containers[0].state == "terminated")).containers[0]
        assert status.exit_code == 137 and "PostStartHookError" in status.message
        await runtime.stop_pod(uid)


async def test_sidecars_run_beside_the_others_and_end_after_them(bench, engine, pod, until, log, eventually):
    image = pod("true")["spec"]["containers"][0]["image"]
    side = "trap 'echo bye; exit 0' TERM; echo up > /v/up; while :; do sleep 0.02; done"
    mounts = [mount("v", "/v")]
    wanted = pod("cat /v/up", volumes=[{"name": "v", "emptyDir": {}}], container={"volumeMounts": mounts})
    base = {"image": image, "volumeMounts": mounts}
    wanted["spec"]["initContainers"] = [
        {**base, "name": "side", "command": ["sh", "-c", side], "restartPolicy": "Always"},
        {**base, "name": "init", "command": ["sh", "-c", "while ! test -e /v/up; do sleep 0.02; done"]},
    ]
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert (status.phase, status.containers[0].exit_code) == ("Succeeded", 0)
        assert await log(runtime, uid) == "up\n" and await log(runtime, uid, "side") == "bye\n"
        await runtime.stop_pod(uid)


async def test_last_words(bench, engine, pod, until):
    said = pod("echo written > /dev/termination-log; exit 3")
    output = pod(
        "echo not this; echo from the log; exit 4",
        container={"terminationMessagePolicy": "FallbackToLogsOnError"},
    )
    async with bench.open() as runtime:
        for wanted, words in ((said, "written\n"), (output, "not this\nfrom the log\n")):
            uid = wanted["metadata"]["uid"]
            await runtime.run_pod(wanted)
            status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
            assert status.containers[0].message == words
            await runtime.stop_pod(uid)


async def test_a_pod_ends_at_its_deadline(bench, engine, pod, until):
    wanted = pod("sleep 100", activeDeadlineSeconds=1, terminationGracePeriodSeconds=0)
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
        await runtime.stop_pod(uid)


@pytest.mark.parametrize(
    ("limit", "path"),
    [({"resources": {"limits": {"ephemeral-storage": "1Mi"}}}, "/big"), ({}, "/v/big")],
)
async def test_who_takes_too_much_disk_is_evicted(bench, pod, until, monkeypatch, limit, path):
    monkeypatch.setattr(pod_limits, "STORAGE_LOOK_S", 0.1)
    wanted = pod(
        f"dd if=/dev/zero of={path} bs=1M count=3 2>/dev/null; sleep 100",
        terminationGracePeriodSeconds=0,
        volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
        container={"volumeMounts": [mount("v", "/v")], **limit},
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert (status.phase, status.reason) == ("Failed", "Evicted") and "1048576" in status.message
        await runtime.stop_pod(uid)


async def test_a_container_with_a_terminal_of_its_own(bench, engine, pod, log):
    wanted = pod(
        "stty size; read word; echo got $word; stty size; sleep 100", container={"tty": True, "stdin": True}
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        while not await log(runtime, uid):  # the first size, before it changes
            pass
        async with runtime.attach(uid, "main", frozenset({STDIN, STDOUT})) as session:
            await session.send(RESIZE, (132).to_bytes(2) + (43).to_bytes(2))
            await session.send(STDIN, b"hello\n")
            seen = b""
            with trio.fail_after(10):
                while not seen.endswith(b"43 132\r\n"):
                    seen += (await session.receive())[1]
        assert b"got hello\r\n43 132\r\n" in seen
        assert "got hello" in await log(runtime, uid)
        await runtime.stop_pod(uid, 0)
    assert bench.remains() == []
