"""Rules that objects must keep, beyond their fields' types; said as a 422 with every cause.

The rules and words are those of ``k8s.io/kubernetes/pkg/apis/{core,apps}/validation``, for what we run.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from .datarules import check_config_map, check_secret, check_unchanged
from .errors import ApiError
from .kinds import Kind
from .names import key_problems, label_problem, subdomain_problem, value_problem
from .podrules import check_pod_spec
from .problems import Problems
from .selectors import LabelSelector
from .servicerules import check_service

Object = dict[str, Any]

#: All annotations of an object together, in bytes (Kubernetes' limit).
MAX_ANNOTATIONS: Final = 256 * 1024
MAX_INT32: Final = 2**31 - 1
_OPERATORS: Final = ("DoesNotExist", "Exists", "In", "NotIn")


def validate_create(kind: Kind, obj: Object) -> None:
    """Raises ApiError 422 naming everything wrong with a new object."""
    problems = _checked(kind, obj)
    _refuse(kind, obj, problems)


def validate_update(kind: Kind, obj: Object, old: Object) -> None:
    """As :func:`validate_create`, and that nothing changes that may not."""
    problems = _checked(kind, obj)
    if (rule := _UPDATE_RULES.get(kind.kind)) is not None:
        rule(obj, old, problems)
    _refuse(kind, obj, problems)


def _checked(kind: Kind, obj: Object) -> Problems:
    problems = Problems()
    check_metadata(obj.get("metadata") or {}, problems, label_name=kind.kind == "Namespace")
    if (rule := _RULES.get(kind.kind)) is not None:
        rule(obj, problems)
    return problems


def _refuse(kind: Kind, obj: Object, problems: Problems) -> None:
    if problems.causes:
        name = str((obj.get("metadata") or {}).get("name", ""))
        raise ApiError.invalid(kind.kind_subject(name), problems.causes)


def check_metadata(meta: Object, problems: Problems, *, label_name: bool) -> None:
    """Name, labels and annotations. ``label_name``: the name must be a label, not a subdomain."""
    name = meta.get("name")
    if not name:
        problems.required("metadata.name", "name or generateName is required")
    elif (problem := (label_problem if label_name else subdomain_problem)(name)) is not None:
        problems.invalid("metadata.name", name, problem)
    check_labels(meta.get("labels") or {}, "metadata.labels", problems)
    annotations = meta.get("annotations") or {}
    for key in annotations:
        for problem in key_problems(key.lower()):
            problems.invalid("metadata.annotations", key, problem)
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > MAX_ANNOTATIONS:
        problems.too_long("metadata.annotations", MAX_ANNOTATIONS)


def check_labels(labels: Mapping[str, str], path: str, problems: Problems) -> None:
    """Keys and values of labels."""
    for key, value in labels.items():
        for problem in key_problems(key):
            problems.invalid(path, key, problem)
        if (wrong := value_problem(value)) is not None:
            problems.invalid(path, value, wrong)


def check_selector(selector: Object, path: str, problems: Problems) -> None:
    """A ``LabelSelector`` object."""
    check_labels(selector.get("matchLabels") or {}, f"{path}.matchLabels", problems)
    for index, term in enumerate(selector.get("matchExpressions") or ()):
        where = f"{path}.matchExpressions[{index}]"
        operator, values = term.get("operator", ""), term.get("values") or ()
        if operator not in _OPERATORS:
            problems.unsupported(f"{where}.operator", operator, _OPERATORS)
        elif operator in ("In", "NotIn") and not values:
            problems.required(f"{where}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist") and values:
            problems.forbidden(
                f"{where}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            )


def _pod(obj: Object, problems: Problems) -> None:
    check_pod_spec(obj.get("spec") or {}, "spec", problems)


def _deployment(obj: Object, problems: Problems) -> None:
    spec = obj.get("spec") or {}
    _count(spec, "replicas", problems)
    _count(spec, "minReadySeconds", problems)
    _count(spec, "revisionHistoryLimit", problems)
    _count(spec, "progressDeadlineSeconds", problems)
    _selector_and_template(spec, "deployment", problems)
    strategy = (spec.get("strategy") or {}).get("type", "RollingUpdate")
    if strategy not in ("Recreate", "RollingUpdate"):
        problems.unsupported("spec.strategy.type", strategy, ("Recreate", "RollingUpdate"))
    elif strategy == "Recreate" and (spec.get("strategy") or {}).get("rollingUpdate") is not None:
        problems.forbidden(
            "spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'"
        )


def _count(spec: Object, name: str, problems: Problems) -> None:
    value = spec.get(name, 0)
    if value < 0:
        problems.invalid(f"spec.{name}", value, "must be greater than or equal to 0")
    elif value > MAX_INT32:
        problems.invalid(f"spec.{name}", value, f"must be less than or equal to {MAX_INT32}")


def _selector_and_template(spec: Object, owner: str, problems: Problems) -> None:
    selector, template = spec.get("selector"), spec.get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    if selector is None:
        problems.required("spec.selector")
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        problems.invalid("spec.selector", selector, f"empty selector is invalid for {owner}")
    else:
        check_selector(selector, "spec.selector", problems)
        if not LabelSelector.of(selector).matches(labels):
            problems.invalid(
                "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
            )
    check_labels(labels, "spec.template.labels", problems)
    pod = template.get("spec") or {}
    check_pod_spec(pod, "spec.template.spec", problems)
    if pod.get("restartPolicy", "Always") != "Always":
        problems.unsupported("spec.template.spec.restartPolicy", pod["restartPolicy"], ("Always",))


def _service(obj: Object, problems: Problems) -> None:
    check_service(obj, problems)
    check_labels((obj.get("spec") or {}).get("selector") or {}, "spec.selector", problems)


#: A pod's name is its label, and so is the name of its revision: 11 characters more than the StatefulSet's.
_STATEFUL_NAME_MAX: Final = 52


def _stateful_set(obj: Object, problems: Problems) -> None:
    spec = obj.get("spec") or {}
    name = str((obj.get("metadata") or {}).get("name") or "")
    if name and (label_problem(name) is not None or len(name) > _STATEFUL_NAME_MAX):
        why = f"must be an RFC 1123 label of at most {_STATEFUL_NAME_MAX} characters: its pods' hostnames begin with it"
        problems.invalid("metadata.name", name, why)
    for counted in ("replicas", "minReadySeconds", "revisionHistoryLimit"):
        _count(spec, counted, problems)
    _selector_and_template(spec, "statefulset", problems)
    if (service := spec.get("serviceName")) and (problem := label_problem(service)) is not None:
        problems.invalid("spec.serviceName", service, problem)
    if (policy := spec.get("podManagementPolicy", "OrderedReady")) not in ("OrderedReady", "Parallel"):
        problems.unsupported("spec.podManagementPolicy", policy, ("OrderedReady", "Parallel"))
    if (spec.get("ordinals") or {}).get("start", 0) < 0:
        problems.invalid(
            "spec.ordinals.start", spec["ordinals"]["start"], "must be greater than or equal to 0"
        )
    if spec.get("volumeClaimTemplates"):
        problems.forbidden(
            "spec.volumeClaimTemplates", "there are no persistent volumes: no storage class is served"
        )
    _update_strategy(spec.get("updateStrategy") or {}, problems)


def _update_strategy(strategy: Object, problems: Problems) -> None:
    kind, rolling = strategy.get("type", "RollingUpdate"), strategy.get("rollingUpdate")
    if kind not in ("OnDelete", "RollingUpdate"):
        problems.unsupported("spec.updateStrategy.type", kind, ("OnDelete", "RollingUpdate"))
    elif kind == "OnDelete" and rolling is not None:
        problems.invalid(
            "spec.updateStrategy.rollingUpdate", rolling, "only allowed for updateStrategy 'RollingUpdate'"
        )
    elif rolling and rolling.get("partition", 0) < 0:
        problems.invalid(
            "spec.updateStrategy.rollingUpdate.partition",
            rolling["partition"],
            "must be greater than or equal to 0",
        )
    elif rolling and rolling.get("maxUnavailable", 1) != 1:
        problems.unsupported(
            "spec.updateStrategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], ("1",)
        )


#: What of a StatefulSet's spec may change.
_STATEFUL_MUTABLE: Final = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def _stateful_set_update(obj: Object, old: Object, problems: Problems) -> None:
    new_spec, old_spec = obj.get("spec") or {}, old.get("spec") or {}
    for name in sorted({*new_spec, *old_spec} - {*_STATEFUL_MUTABLE}):
        if new_spec.get(name) != old_spec.get(name):
            problems.forbidden(
                f"spec.{name}",
                "updates to statefulset spec for fields other than "
                + ", ".join(f"'{field}'" for field in _STATEFUL_MUTABLE)
                + " are forbidden",
            )


def _deployment_update(obj: Object, old: Object, problems: Problems) -> None:
    if obj["spec"].get("selector") != old["spec"].get("selector"):
        problems.invalid("spec.selector", obj["spec"].get("selector"), "field is immutable")


#: What a running pod's spec may still change: nothing that would need another tender.
_POD_MUTABLE: Final = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")


def _pod_update(obj: Object, old: Object, problems: Problems) -> None:
    if _fixed(obj.get("spec") or {}) != _fixed(old.get("spec") or {}):
        problems.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
            "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )


def _fixed(spec: Object) -> Object:
    # The machine and the phase's own fields are set by the fabric between a client's read and its write.
    fixed = {key: value for key, value in spec.items() if key not in _POD_MUTABLE and key != "nodeName"}
    for which in ("containers", "initContainers"):
        if which in fixed:
            fixed[which] = [item | {"image": ""} for item in fixed[which]]
    return fixed


_RULES: Final[Mapping[str, Callable[[Object, Problems], None]]] = MappingProxyType(
    {
        "Pod": _pod,
        "Deployment": _deployment,
        "StatefulSet": _stateful_set,
        "ConfigMap": check_config_map,
        "Secret": check_secret,
        "Service": _service,
    }
)
_UPDATE_RULES: Final[Mapping[str, Callable[[Object, Object, Problems], None]]] = MappingProxyType(
    {
        "Pod": _pod_update,
        "Deployment": _deployment_update,
        "StatefulSet": _stateful_set_update,
        "ConfigMap": check_unchanged,
        "Secret": check_unchanged,
    }
)
