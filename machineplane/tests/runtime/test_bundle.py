"""From spec to OCI configuration."""

from fractions import Fraction
from pathlib import Path

import pytest

from machineplane.runtime.bundle import BundleContext, HostPolicy, check_pod, container_bundle, infra_config
from machineplane.runtime.bundle.env import arguments, expand
from machineplane.runtime.bundle.fields import Place
from machineplane.runtime.bundle.quantity import byte_count, linux_resources, quantity
from machineplane.runtime.bundle.users import capabilities, process_user
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.images.model import ImageConfig


def make_pod(container=None, **spec):
    main = {"name": "main", "image": "localhost/x", **(container or {})}
    return {
        "metadata": {"uid": "u-1", "name": "web-0", "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [main], **spec},
    }


def configure(pod, image=None, **context):
    defaults = {
        "image": image or ImageConfig(cmd=("sh",)),
        "layers": (),
        "cgroup_mode": "v2",
        "infra_pid": 42,
    }
    folder = Path("/var/lib/magik/pods/u-1")
    made = BundleContext(
        pod=pod,
        pod_dir=folder,
        bundle=folder / "b",
        private=folder / "private/c",
        cgroup="/magik/u-1/c",
        **(defaults | context),
    )
    return container_bundle(pod["spec"]["containers"][0], made)


def config(pod, image=None, **context):
    return configure(pod, image, **context).config


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", "0.5"), ("1", "1"), ("64Mi", str(64 << 20)), ("1e3", "1000"), ("1.5G", "1500000000")],
)
def test_quantities(text, value):
    assert quantity(text, "x") == Fraction(value)


@pytest.mark.parametrize("text", ["", "x", "1Q", "-1", "1 Mi", "NaN", "1e999", True])
def test_bad_quantities_name_the_field(text):
    with pytest.raises(PodSpecError, match=r"limits\.memory"):
        byte_count(text, "limits.memory")


def test_resources():
    made = linux_resources({"limits": {"cpu": "250m", "memory": "1Gi"}}, 100, "c")
    assert made["cpu"] == {"shares": 256, "quota": 25_000, "period": 100_000}
    assert made["memory"] == {"limit": 1 << 30} and made["pids"] == {"limit": 100}
    assert made["devices"] == [{"allow": False, "access": "rwm"}]


def test_variables_expand_as_in_kubernetes():
    assert expand("$(A)-$$(A)-$(B)-$", {"A": "1"}) == "1-$(A)-$(B)-$"


def test_command_replaces_entrypoint_and_cmd_and_args_only_cmd():
    assert arguments({"command": ["a"]}, ["e"], ["c"], {}) == ["a"]
    assert arguments({"args": ["$(X)"]}, ["e"], ["c"], {"X": "v"}) == ["e", "v"]
    assert arguments({}, ["e"], ["c"], {}) == ["e", "c"]
    with pytest.raises(PodSpecError, match="no command"):
        arguments({"name": "main"}, [], [], {})


def test_environment_has_image_then_spec_then_fields():
    env = [
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "URL", "value": "http://$(IP)/"},
    ]
    made = config(
        make_pod({"env": env}),
        ImageConfig(cmd=("sh",), env=("APP=old", "LANG=C")),
        place=Place(pod_ip="10.0.0.9"),
    )
    values = dict(entry.split("=", 1) for entry in made["process"]["env"])
    assert (values["APP"], values["LANG"], values["URL"]) == ("web", "C", "http://10.0.0.9/")
    assert values["HOSTNAME"] == "web-0"


def test_unsupported_env_source_is_named():
    env = [{"name": "S", "valueFrom": {"fileKeyRef": {"path": "x", "key": "y"}}}]
    with pytest.raises(PodSpecError, match=r"spec.containers\[0\].env\[0\].valueFrom.fileKeyRef"):
        check_pod(make_pod({"env": env}), HostPolicy())


def test_namespaces_are_the_infra_containers():
    kinds = {n["type"]: n.get("path") for n in config(make_pod())["linux"]["namespaces"]}
    assert kinds == {
        "pid": None,
        "mount": None,
        "network": "/proc/42/ns/net",
        "ipc": "/proc/42/ns/ipc",
        "uts": "/proc/42/ns/uts",
    }


def test_users_by_name_in_the_image_without_following_links(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("web:x:44:\nlogs:x:55:web\n")
    layers = (tmp_path,)
    assert process_user({}, {}, "web", layers) == {"uid": 33, "gid": 44, "additionalGids": [55]}
    assert process_user({"runAsUser": 7, "runAsGroup": 8}, {}, "web", layers)["gid"] == 8
    with pytest.raises(PodSpecError, match="nobody"):
        process_user({}, {}, "nobody", layers)
    with pytest.raises(PodSpecError, match="runAsNonRoot"):
        process_user({"runAsNonRoot": True}, {}, "", layers)
    (tmp_path / "etc/passwd").unlink()
    (tmp_path / "etc/passwd").symlink_to("/etc/passwd")
    with pytest.raises(PodSpecError, match="daemon"):
        process_user({}, {}, "daemon", layers)


def test_capabilities_add_drop_and_no_devices_without_a_filter():
    assert capabilities(
        {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}, devices_filtered=True
    )["bounding"] == ["CAP_NET_BIND_SERVICE"]
    assert "CAP_MKNOD" in capabilities({}, devices_filtered=True)["bounding"]
    assert "CAP_MKNOD" not in capabilities({}, devices_filtered=False)["bounding"]
    with pytest.raises(PodSpecError, match="FLY"):
        capabilities({"capabilities": {"add": ["FLY"]}}, devices_filtered=True)


@pytest.mark.parametrize(
    ("container", "spec", "name"),
    [
        ({}, {"hostNetwork": True}, "hostNetwork"),
        ({}, {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {"privileged": True}}, {}, "privileged"),
        ({"lifecycle": {"preStop": {"tcpSocket": {"port": 1}}}}, {}, "lifecycle.preStop says tcpSocket"),
        ({"lifecycle": {"preStop": {}}}, {}, "preStop says nothing"),
        ({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}, {}, "none"),
        ({"name": "Not_A_Label"}, {}, "DNS label"),
        ({}, {"restartPolicy": "Sometimes"}, "Sometimes"),
        ({}, {"containers": []}, "containers is empty"),
        ({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "x"}}}, {}, "'x'"),
        ({"securityContext": {"seccompProfile": {"type": "Mine"}}}, {}, "seccompProfile.type"),
        ({"restartPolicy": "Always"}, {}, "restartPolicy"),
        ({}, {"securityContext": {"sysctls": [{"name": "kernel.panic", "value": "1"}]}}, "kernel.panic"),
        (
            {},
            {"securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}},
            "allow-sysctl",
        ),
        ({}, {"activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
        ({}, {"readinessGates": [{"conditionType": "example.com/x"}]}, "spec.readinessGates"),
        ({}, {"schedulingGates": [{"name": "example.com/x"}]}, "spec.schedulingGates"),
        ({}, {"runtimeClassName": "gvisor"}, "spec.runtimeClassName"),
        ({}, {"hostUsers": False}, "spec.hostUsers"),
        ({}, {"resources": {"limits": {"memory": "1Gi"}}}, "spec.resources"),
        ({}, {"schedulerName": "mine"}, "spec.schedulerName 'mine'"),
        ({}, {"os": {"name": "windows"}}, "spec.os.name 'windows'"),
        ({"ports": [{"containerPort": 80, "hostPort": 80}]}, {}, r"ports\[0\].hostPort"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
            {},
            "resources.limits: machines have no 'nvidia",
        ),
        ({"resources": {"requests": {"hugepages-2Mi": "4Mi"}}}, {}, "resources.requests: .* 'hugepages-2Mi'"),
        ({"resources": {"claims": [{"name": "x"}]}}, {}, "resources.claims"),
        ({"livenessProbe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}}, {}, "exec, tcpSocket"),
        ({"readinessProbe": {"periodSeconds": 1}}, {}, "readinessProbe says nothing"),
        ({}, {"volumes": [{"name": "v", "nfs": {"path": "/"}}]}, r"volumes\[0\].nfs"),
        (
            {},
            {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
            "Token",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(container, spec, name):
    with pytest.raises(PodSpecError, match=name):
        check_pod(make_pod(container, **spec), HostPolicy(privileged=False))


def test_what_says_nothing_new_is_taken():
    pod = make_pod(
        {"ports": [{"containerPort": 80}], "resources": {"limits": {"nvidia.com/gpu": "0"}}},
        hostUsers=True,
        schedulerName="default-scheduler",
        os={"name": "linux"},
        readinessGates=[],
    )
    check_pod(pod, HostPolicy(privileged=False))


def test_privileged_is_a_matter_of_configuration():
    check_pod(make_pod({"securityContext": {"privileged": True}}), HostPolicy(privileged=True))


def test_infra_container_is_nobody_with_nothing():
    pod = make_pod()
    folder = Path("/p")
    context = BundleContext(
        pod=pod,
        pod_dir=folder,
        bundle=folder,
        private=folder,
        cgroup="/g",
        cgroup_mode="none",
        image=ImageConfig(cmd=("/pause",)),
        layers=(),
    )
    made = infra_config(context)
    assert made["process"]["user"]["uid"] == 65534 and made["process"]["capabilities"]["bounding"] == []
    assert "resources" not in made["linux"] and made["root"]["readonly"] is True
