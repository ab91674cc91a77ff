"""``pods/<name>/log``: a container's output as chunked text."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final

from .backend import LogOptions, Object
from .calls import Answer, Call, Target
from .context import Api
from .errors import ApiError

DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"


async def read_log(api: Api, call: Call, target: Target) -> Answer:
    """The log stream. Raises ApiError 404 for no pod, 400 for no such container or one that has not
    started."""
    pod = await api.existing(target)
    name = chosen_container(pod, call.query.get("container") or None)
    options = log_options(call)
    _check_started(pod, name, options.previous)
    namespace, pod_name = str(target.namespace), str(target.name)

    def opened() -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return api.backend.logs(namespace, pod_name, name, options)

    return Answer(media="text/plain", stream=opened)


def log_options(call: Call) -> LogOptions:
    """From the query. Raises ApiError 400."""
    return LogOptions(
        follow=call.flag("follow"),
        tail_lines=call.number("tailLines"),
        since_seconds=call.number("sinceSeconds", least=1),
        timestamps=call.flag("timestamps"),
        previous=call.flag("previous"),
        limit_bytes=call.number("limitBytes", least=1),
    )


def chosen_container(pod: Object, asked: str | None) -> str:
    """The container whose log is meant: the one asked for, the only one, or the annotated default. Raises
    ApiError 400."""
    name = pod["metadata"]["name"]
    main = [item["name"] for item in pod["spec"].get("containers") or ()]
    known = main + [item["name"] for item in pod["spec"].get("initContainers") or ()]
    if asked is not None:
        if asked not in known:
            raise ApiError.bad_request(f"container {asked} is not valid for pod {name}")
        return asked
    default = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
    if default in known:
        return str(default)
    if len(main) == 1:
        return str(main[0])
    choices = f"[{' '.join(main)}]"
    raise ApiError.bad_request(f"a container name must be specified for pod {name}, choose one of: {choices}")


def _check_started(pod: Object, container: str, previous: bool) -> None:
    status = pod.get("status") or {}
    items = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    item = next((item for item in items if item.get("name") == container), None)
    name = pod["metadata"]["name"]
    if previous:
        if not ((item or {}).get("lastState") or {}).get("terminated"):
            raise ApiError.bad_request(
                f'previous terminated container "{container}" in pod "{name}" not found'
            )
        return
    waiting = ((item or {}).get("state") or {}).get("waiting")
    started = item is not None and (item.get("restartCount", 0) > 0 or waiting is None)
    if not started:
        reason = (waiting or {}).get("reason") or "it is not scheduled yet"
        words = {
            "ImagePullBackOff": "trying and failing to pull image",
            "ErrImagePull": "image can't be pulled",
        }
        raise ApiError.bad_request(
            f'container "{container}" in pod "{name}" is waiting to start: {words.get(reason, reason)}'
        )
