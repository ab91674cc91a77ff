"""Strategic merge as a function: examples from Kubernetes' documentation, and properties."""

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.kubeapi.errors import ApiError
from machineplane.kubeapi.strategic import merge, strategic_merge

POD = "core.PodSpec"


def containers(*items):
    return {"containers": [dict(zip(("name", "image"), item, strict=False)) for item in items]}


def test_keyed_lists_merge_by_key():
    merged = strategic_merge(containers(("a", "1"), ("b", "1")), containers(("b", "2"), ("c", "1")), POD)
    assert merged == containers(("a", "1"), ("b", "2"), ("c", "1"))


def test_directives_delete_and_replace():
    current = containers(("a", "1"), ("b", "1"))
    gone = strategic_merge(current, {"containers": [{"name": "a", "$patch": "delete"}]}, POD)
    assert gone == containers(("b", "1"))
    new = strategic_merge(current, {"containers": [{"$patch": "replace"}, {"name": "c"}]}, POD)
    assert new == containers(("c",))
    assert strategic_merge(current, {"$patch": "replace", "hostname": "x"}, POD) == {"hostname": "x"}


def test_order_is_set():
    patch = containers(("c", "1")) | {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}]}
    merged = strategic_merge(containers(("a", "1"), ("x", "1")), patch, POD)
    assert [item["name"] for item in merged["containers"]] == ["c", "x", "a"]


def test_retain_keys_changes_a_union():
    current = {"volumes": [{"name": "v", "emptyDir": {}}]}
    patch = {"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]}
    assert strategic_merge(current, patch, POD) == {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}


def test_sets_of_texts():
    current = {"finalizers": ["a", "b"]}
    assert strategic_merge(current, {"finalizers": ["b", "c"]}, "meta.ObjectMeta") == {
        "finalizers": ["a", "b", "c"]
    }
    patch = {"$deleteFromPrimitiveList/finalizers": ["a"]}
    assert strategic_merge(current, patch, "meta.ObjectMeta") == {"finalizers": ["b"]}


def test_lists_without_key_are_replaced():
    assert strategic_merge({"tolerations": [{"key": "a"}]}, {"tolerations": []}, POD) == {"tolerations": []}


@pytest.mark.parametrize(
    "patch",
    [
        {"containers": [{"image": "x"}]},
        {"$patch": "fly"},
        {"$retainKeys": 1},
        {"$retainKeys": ["a"], "hostname": "x"},
    ],
)
def test_senseless_patches_are_400(patch):
    with pytest.raises(ApiError) as caught:
        strategic_merge(containers(("a", "1")), patch, POD)
    assert caught.value.code == 400


NAMES = st.sampled_from("abcd")
SPEC = st.builds(
    lambda names, images, labels: {
        "containers": [{"name": name, "image": image} for name, image in zip(names, images, strict=False)],
        "nodeSelector": labels,
    },
    st.lists(NAMES, unique=True, min_size=1),
    st.lists(NAMES, min_size=4, max_size=4),
    st.dictionaries(NAMES, NAMES),
)


@given(SPEC, SPEC)
def test_patching_twice_is_patching_once_and_inputs_stay(current, patch):
    before = deepcopy((current, patch))
    once = strategic_merge(current, patch, POD)
    assert strategic_merge(once, patch, POD) == once
    assert (current, patch) == before


@given(SPEC, SPEC)
def test_everything_said_holds_and_names_stay_unique(current, patch):
    merged = strategic_merge(current, patch, POD)
    images = {item["name"]: item["image"] for item in merged["containers"]}
    assert all(images[item["name"]] == item["image"] for item in patch["containers"])
    assert len(images) == len(merged["containers"])
    assert set(images) == {item["name"] for item in current["containers"] + patch["containers"]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
)


@given(JSON, JSON)
def test_merge_patch_is_idempotent_and_leaves_no_null_it_was_given(current, patch):
    once = merge(current, patch)
    assert merge(once, patch) == once
