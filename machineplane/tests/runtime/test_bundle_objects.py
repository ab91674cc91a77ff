"""ConfigMaps, Secrets and the downward API in variables and volumes; binds; seccomp; resolver and hosts."""

import base64
from pathlib import Path

import pytest

from machineplane.runtime.bundle import HostPolicy, MissingReference, check_pod
from machineplane.runtime.bundle.contents import File, files_of
from machineplane.runtime.bundle.env import Surroundings, own_variables
from machineplane.runtime.bundle.fields import Place
from machineplane.runtime.bundle.seccomp import default_profile, profile_of
from machineplane.runtime.bundle.sysctls import sysctls
from machineplane.runtime.bundle.volumes import Bind, container_binds, volume_mounts, volumes
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.podfiles import hosts, resolv_conf

OBJECTS = {
    ("ConfigMap", "conf"): {"data": {"level": "info", "a=b": "never"}, "binaryData": {"raw": "AAE="}},
    ("ConfigMap", "plain"): {"data": {"ONE": "1", "TWO": "2"}},
    ("Secret", "key"): {"data": {"token": base64.b64encode(b"s3cret").decode()}},
}
PLACE = Place(node_name="n1", host_ip="192.0.2.1", pod_ip="10.1.2.3", cpus=4, memory=8 << 30, storage=1 << 40)


def make_pod(container=None, **spec):
    main = {"name": "main", "image": "localhost/x", **(container or {})}
    metadata = {"uid": "u-1", "name": "web-0", "namespace": "shop", "labels": {"b": '"2"', "a": "1"}}
    return {"metadata": metadata, "spec": {"containers": [main], **spec}}


def around(pod):
    return Surroundings(pod=pod, place=PLACE, lookup=lambda kind, name: OBJECTS.get((kind, name)))


def variables(**container):
    pod = make_pod(container)
    return own_variables(pod["spec"]["containers"][0], around(pod))


def ref(kind, name, key, **more):
    return {"valueFrom": {f"{kind}KeyRef": {"name": name, "key": key, **more}}}


def test_variables_of_config_maps_and_secrets():
    made = variables(
        envFrom=[
            {"prefix": "P_", "configMapRef": {"name": "plain"}},
            {"secretRef": {"name": "no", "optional": True}},
        ],
        env=[
            {"name": "LEVEL", **ref("configMap", "conf", "level")},
            {"name": "TOKEN", **ref("secret", "key", "token")},
            {"name": "NONE", **ref("secret", "key", "absent", optional=True)},
            {"name": "URL", "value": "x?$(P_ONE)&$(TOKEN)"},
            {"name": "P_TWO", "value": "own"},
        ],
    )
    assert made == {"P_ONE": "1", "P_TWO": "own", "LEVEL": "info", "TOKEN": "s3cret", "URL": "x?1&s3cret"}


def test_a_key_that_is_no_name_of_a_variable_is_left_out():
    with pytest.raises(PodSpecError, match="NUL"):
        variables(envFrom=[{"configMapRef": {"name": "conf"}}])
    texts = {"level": "info", "a=b": "x"}
    pod = make_pod({"envFrom": [{"configMapRef": {"name": "t"}}]})
    surroundings = Surroundings(pod=pod, place=PLACE, lookup=lambda *_: {"data": texts})
    assert own_variables(pod["spec"]["containers"][0], surroundings) == {"level": "info"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ref("configMap", "absent", "k"), 'configmap "absent" not found'),
        (ref("secret", "key", "k"), "couldn't find key k in Secret key"),
    ],
)
def test_what_is_missing_is_said_as_users_know_it(entry, said):
    with pytest.raises(MissingReference, match=said):
        variables(env=[{"name": "X", **entry}])


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", None, "1"),
        ("limits.cpu", "1m", "250"),
        ("limits.memory", "1Mi", str(8 << 10)),
        ("requests.memory", None, "0"),
    ],
)
def test_resource_fields_are_divided_and_rounded_up(resource, divisor, value):
    reference = {"resource": resource, **({"divisor": divisor} if divisor else {})}
    made = variables(
        resources={"limits": {"cpu": "250m"}},
        env=[{"name": "R", "valueFrom": {"resourceFieldRef": reference}}],
    )
    assert made == {"R": value}


def test_volumes_of_objects():
    pod = make_pod()
    assert files_of("configMap", {"name": "conf", "defaultMode": 0o400}, around(pod))["raw"] == File(
        b"\0\1", 0o400
    )
    items = [{"key": "token", "path": "deep/er", "mode": 0o600}]
    assert files_of("secret", {"secretName": "key", "items": items}, around(pod)) == {
        "deep/er": File(b"s3cret", 0o600)
    }
    fields = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    assert files_of("downwardAPI", {"items": fields}, around(pod))["labels"].content == b'a="1"\nb="\\"2\\""'
    sources = [
        {"secret": {"name": "key"}},
        {"configMap": {"name": "plain"}},
        {"configMap": {"name": "x", "optional": True}},
    ]
    assert set(files_of("projected", {"sources": sources}, around(pod))) == {"token", "ONE", "TWO"}
    with pytest.raises(MissingReference, match="non-existent key"):
        files_of("secret", {"secretName": "key", "items": [{"key": "no", "path": "x"}]}, around(pod))


@pytest.mark.parametrize("path", ["/x", "../x", "a/../b", "", "a//b", "..data"])
def test_paths_that_leave_the_volume_are_refused_by_name(path):
    volume = {"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": path}]}}
    with pytest.raises(PodSpecError, match=r"spec.volumes\[0\].configMap.items\[0\].path"):
        check_pod(make_pod(volumes=[volume]), HostPolicy())


def test_host_paths_are_a_matter_of_policy():
    pod = make_pod(volumes=[{"name": "v", "hostPath": {"path": "/srv/data/x", "type": "Directory"}}])
    check_pod(pod, HostPolicy(host_paths=("/srv/data",)))
    for prefixes in ((), ("/srv/dat",), ("/srv/data/x/y",)):
        with pytest.raises(PodSpecError, match=r"spec.volumes\[0\].hostPath.path: .*--allow-host-path"):
            check_pod(pod, HostPolicy(host_paths=prefixes))


def test_what_is_looked_up_at_the_mount_never_leaves_its_root():
    mounts = [
        {"name": "host", "mountPath": "/h", "subPath": "in"},
        {"name": "tmp", "mountPath": "/t", "subPathExpr": "$(WHO)"},
        {"name": "tmp", "mountPath": "/whole"},
    ]
    container = {"name": "main", "image": "x", "volumeMounts": mounts}
    spec = {"volumes": [{"name": "host", "hostPath": {"path": "/srv/a"}}, {"name": "tmp", "emptyDir": {}}]}
    known, folder = volumes(spec), Path("/pods/u")
    found = container_binds(container, folder, known, {"WHO": "me"}, HostPolicy(host_paths=("/srv",)))
    assert found == {
        0: Bind(root="/srv", path="a/in", make=True),
        1: Bind(root="/pods/u/volumes/tmp", path="me", make=True),
    }
    made = volume_mounts(container, folder, known, {0: Path("/b0"), 1: Path("/b1")})
    assert [mount["source"] for mount in made] == ["/b0", "/b1", "/pods/u/volumes/tmp"]
    with pytest.raises(PodSpecError, match="subPathExpr"):
        container_binds(container, folder, known, {"WHO": "../.."}, HostPolicy(host_paths=("/srv",)))


def test_the_default_profile_gives_back_what_a_capability_allows():
    def refused(granted):
        profile = default_profile(granted)
        assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
        return {name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]}

    plain, trusted = refused([]), refused(["CAP_SYS_ADMIN", "CAP_SYS_TIME"])
    assert {"mount", "bpf", "clone3", "kexec_load", "settimeofday", "io_uring_setup"} <= plain
    assert plain - trusted >= {"mount", "clone3", "settimeofday"} and {"kexec_load", "init_module"} <= trusted


def test_which_profile_applies(tmp_path):
    (tmp_path / "own.json").write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    local = {"seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}}
    assert profile_of({}, local, [], tmp_path) == {"defaultAction": "SCMP_ACT_LOG"}
    assert profile_of({"seccompProfile": {"type": "Unconfined"}}, local, [], tmp_path) is None
    assert profile_of({"privileged": True}, {}, [], tmp_path) is None
    assert profile_of({}, {}, [], None)["syscalls"]
    with pytest.raises(PodSpecError, match="relative path"):
        profile_of({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}, {}, [], tmp_path)


def test_sysctls_are_added_to_those_that_every_pod_has():
    made = sysctls({"sysctls": [{"name": "net/ipv4/ip_unprivileged_port_start", "value": "80"}]})
    assert made == {"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.ping_group_range": "0 2147483647"}


def test_resolver_and_hosts():
    machine = "nameserver 192.0.2.53\nsearch example.org\noptions edns0 ndots:2\n"
    config = {
        "nameservers": ["192.0.2.9"],
        "searches": ["a.example"],
        "options": [{"name": "ndots", "value": "5"}, {"name": "rotate"}],
    }
    assert resolv_conf(make_pod(), machine) == machine
    assert resolv_conf(make_pod(dnsPolicy="None", dnsConfig=config), machine) == (
        "nameserver 192.0.2.9\nsearch a.example\noptions ndots:5 rotate\n"
    )
    both = resolv_conf(make_pod(dnsConfig=config), machine).splitlines()
    assert both[:3] == ["nameserver 192.0.2.53", "nameserver 192.0.2.9", "search example.org a.example"]
    assert both[3] == "options edns0 ndots:5 rotate"
    pod = make_pod(hostname="h", subdomain="sub", hostAliases=[{"ip": "10.0.0.1", "hostnames": ["x", "y"]}])
    text = hosts(pod, "10.1.2.3")
    assert "10.1.2.3\th.sub.shop.svc.cluster.local h\n" in text and text.endswith("10.0.0.1\tx y\n")
