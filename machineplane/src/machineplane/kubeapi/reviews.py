"""Self-subject reviews: who am I, may I. There is one kind of caller, who got past the door and may do
everything."""

from typing import Final

from .backend import Object
from .bodies import read_object
from .calls import Answer, Call
from .discovery import Review
from .errors import ApiError
from .structure import structure

USER: Final = "magik:operator"
GROUPS: Final = ("system:masters", "system:authenticated")


def review(call: Call, kind: Review) -> Answer:
    """Answer a POST of a review with 201 and its status. Raises ApiError 400."""
    group_version = f"{kind.group}/{kind.version}"
    obj = read_object(call.body, call.content_type).value
    obj = {"kind": kind.kind, "apiVersion": group_version} | obj
    if (obj["kind"], obj["apiVersion"]) != (kind.kind, group_version):
        raise ApiError.bad_request(f"the body is no {kind.kind} of {group_version}")
    package = kind.group.partition(".")[0]
    cleaned = structure(obj, f"{package}.{kind.kind}").object
    return Answer(
        cleaned | {"metadata": cleaned.get("metadata", {}), "status": _status(kind.kind)}, status=201
    )


def _status(kind: str) -> Object:
    match kind:
        case "SelfSubjectReview":
            return {"userInfo": {"username": USER, "groups": list(GROUPS)}}
        case "SelfSubjectAccessReview":
            return {"allowed": True, "reason": "whoever reaches this API with its token is the operator"}
        case _:
            everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
            return {
                "resourceRules": [everything],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
