"""The Quart application: the route table, and the one place where requests come in and answers go out."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType, TracebackType
from typing import Any, Final, cast

import structlog
from quart import Response, request
from quart.typing import ResponseTypes
from quart.wrappers.response import ResponseBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from .bodies import MAX_BODY
from .calls import Answer, Call, OpenStream, Target
from .context import Api
from .discovery import REVIEWS, aggregated_form, aggregated_media_type, version_info
from .errors import ApiError
from .logs import read_log
from .openapi import V2_MEDIA, v2_json, v2_protobuf, v3_document, v3_index
from .patches import patch_object
from .reads import get_object, get_scale, list_objects
from .reviews import review
from .scales import patch_scale, put_scale
from .targets import find_target
from .watches import watch_objects
from .writes import create_object, delete_collection, delete_object, replace_object

Handler = Callable[[Api, Call, Target], Awaitable[Answer]]

_log = structlog.get_logger("kubeapi")

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

#: What to do for (scope, method), with the verb that the kind must have. Scope: "many", "one", or a
#: subresource.
HANDLERS: Final[Mapping[tuple[str, str], tuple[str, Handler]]] = MappingProxyType(
    {
        ("many", "GET"): ("list", list_objects),
        ("many", "POST"): ("create", create_object),
        ("many", "DELETE"): ("deletecollection", delete_collection),
        ("one", "GET"): ("get", get_object),
        ("one", "PUT"): ("update", replace_object),
        ("one", "PATCH"): ("patch", patch_object),
        ("one", "DELETE"): ("delete", delete_object),
        ("status", "GET"): ("get", get_object),
        ("scale", "GET"): ("get", get_scale),
        ("scale", "PUT"): ("update", put_scale),
        ("scale", "PATCH"): ("patch", patch_scale),
        ("log", "GET"): ("get", read_log),
    }
)
#: Subresources that are streams: see :mod:`.streams`. A plain request for one is a client that speaks SPDY.
STREAMS: Final = ("attach", "exec", "portforward")


_ONLY_WEBSOCKETS: Final = (
    "pods/{} is served over WebSockets only: "
    "exec, attach and cp need kubectl 1.30 or later, port-forward 1.31 or later"
)


def create_app(api: Api) -> QuartTrio:
    """The application that serves ``api``; no listener, no access control (see :mod:`.guard` and
    :mod:`.server`)."""
    app = QuartTrio("machineplane.kubeapi", static_folder=None)
    app.asgi_http_class = _Connection
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, PROVIDE_AUTOMATIC_OPTIONS=False, RESPONSE_TIMEOUT=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False

    async def root(path: str = "") -> Response:
        call = await _read_call()
        return _response(await dispatch(api, call, path.strip("/").split("/") if path.strip("/") else []))

    app.add_url_rule("/", "root", root, methods=METHODS)
    app.add_url_rule("/<path:path>", "path", root, methods=METHODS)
    app.register_error_handler(ApiError, _api_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)
    return app


async def _read_call() -> Call:
    return Call(
        method="GET" if request.method == "HEAD" else request.method,
        query=request.args.to_dict(flat=True),
        accept=request.headers.get("Accept", ""),
        content_type=request.headers.get("Content-Type"),
        user_agent=request.headers.get("User-Agent", ""),
        body=cast(bytes, await request.get_data(cache=False)),
    )


async def dispatch(api: Api, call: Call, path: list[str]) -> Answer:
    """Answer a call to a path given by its segments. Raises ApiError."""
    match path:
        case ["api", version, *rest] if rest:
            return await _resource(api, call, "", version, rest)
        case ["apis", group, version, *rest] if rest:
            return await _resource(api, call, group, version, rest)
    if call.method != "GET":
        raise ApiError.method_not_allowed()
    return _document(api, call, path)


def _document(api: Api, call: Call, path: list[str]) -> Answer:
    """What the API says about itself."""
    match path:
        case []:
            return Answer(
                {
                    "paths": [
                        "/api",
                        "/apis",
                        "/healthz",
                        "/livez",
                        "/openapi/v2",
                        "/openapi/v3",
                        "/readyz",
                        "/version",
                    ]
                }
            )
        case ["version"]:
            return Answer(version_info(api.release))
        case ["healthz" | "livez" | "readyz"]:
            return Answer(b"ok", media="text/plain")
        case ["openapi", "v2"]:
            wants_json = "protobuf" not in call.accept
            return Answer(v2_json()) if wants_json else Answer(v2_protobuf(api.kinds), media=V2_MEDIA)
        case ["openapi", "v3"]:
            return Answer(v3_index(api.kinds))
        case ["openapi", "v3", "api", version]:
            return Answer(v3_document(api.kinds, "", version))
        case ["openapi", "v3", "apis", group, version]:
            return Answer(v3_document(api.kinds, group, version))
        case ["api" | "apis" as root]:
            return _discovery_root(api, call, core=root == "api")
        case ["apis", group]:
            return _found(api.discovery.api_group(group))
        case ["api", version]:
            return _found(api.discovery.resources("", version))
        case ["apis", group, version]:
            return _found(api.discovery.resources(group, version))
    raise ApiError.no_such_path()


def _found(document: dict[str, Any] | None) -> Answer:
    if document is None:
        raise ApiError.no_such_path()
    return Answer(document)


def _discovery_root(api: Api, call: Call, *, core: bool) -> Answer:
    form = aggregated_form(call.accept)
    if form is not None:
        return Answer(api.discovery.aggregated(form, core=core), media=aggregated_media_type(form))
    return Answer(api.discovery.api_versions() if core else api.discovery.api_group_list())


async def _resource(api: Api, call: Call, group: str, version: str, rest: list[str]) -> Answer:
    for kind in REVIEWS:
        if (kind.group, kind.version, [kind.plural]) == (group, version, rest):
            if call.method != "POST":
                raise ApiError.method_not_allowed()
            return review(call, kind)
    target = find_target(api.kinds, group, version, rest)
    return await handler_for(call, target)(api, call, target)


def handler_for(call: Call, target: Target) -> Handler:
    """The handler of a call. Raises ApiError 405 for a verb that the target does not have, 501 for
    streams."""
    if target.subresource in STREAMS:
        raise ApiError.not_implemented(_ONLY_WEBSOCKETS.format(target.subresource))
    scope = target.subresource or ("one" if target.name is not None else "many")
    verb, handler = HANDLERS.get((scope, call.method), ("", None))
    subresource = target.kind.subresource(target.subresource or "")
    verbs = target.kind.verbs if subresource is None else subresource.verbs
    if handler is None or verb not in verbs:
        raise ApiError.method_not_allowed()
    everywhere = target.kind.namespaced and target.namespace is None
    if everywhere and call.method != "GET":
        raise ApiError.method_not_allowed("name a namespace: objects are written in one namespace at a time")
    if handler is list_objects and call.flag("watch"):
        return watch_objects
    return handler


class _StreamBody(ResponseBody):
    """A body whose stream is opened, in the task that sends it, before the head of the response goes out."""

    def __init__(self, opener: OpenStream) -> None:
        self.opener = opener
        self.lines: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> AsyncIterator[bytes]:
        assert self.lines is not None
        return self.lines

    async def __aexit__(self, exc_type: type, exc_value: BaseException, tb: TracebackType) -> None:
        """The connection closes the stream: it opened it."""


class _Connection(TrioASGIHTTPConnection):
    """Opens streams around the sending, so that their scopes nest, and errors of opening become the
    answer."""

    async def _send_response(self, send: Any, response: ResponseTypes) -> None:
        try:
            async with AsyncExitStack() as stack:
                await super()._send_response(send, await _opened(stack, response))
        except Exception as error:
            # The head is out: all that is left is to drop the connection, which the server does.
            _log.error("response.failed", path=self.scope["path"], exc_info=error)
            raise


async def _opened(stack: AsyncExitStack, response: ResponseTypes) -> ResponseTypes:
    """The response with its stream open, or the error that opening it gave."""
    body = response.response
    if isinstance(body, _StreamBody):
        try:
            body.lines = await stack.enter_async_context(body.opener())
        except Exception as error:  # noqa: BLE001 - the edge: whatever a backend raises is logged and answered
            return await _api_error(_said(error))
    return response


def _response(answer: Answer) -> Response:
    """A Quart response without time limit."""
    body: Any
    if answer.stream is not None:
        body = _StreamBody(answer.stream)
    elif isinstance(answer.value, bytes):
        body = answer.value
    else:
        body = json.dumps(answer.value, separators=(",", ":")).encode() + b"\n"
    response = Response(body, status=answer.status, content_type=answer.media)
    response.timeout = None
    response.headers["Cache-Control"] = "no-cache, private"
    for name, value in answer.headers.items():
        response.headers[name] = value
    for warning in answer.warnings:
        response.headers.add("Warning", f"299 - {_quoted(warning)}")
    return response


def _quoted(text: str) -> str:
    """A header's quoted string; what a header cannot carry is escaped."""
    plain = text.encode("ascii", "backslashreplace").decode().replace("\n", " ").replace("\r", " ")
    return '"' + plain[:500].replace("\\", "\\\\").replace('"', '\\"') + '"'


async def _api_error(error: ApiError) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    return _response(Answer(error.status(), status=error.code, headers=headers))


async def _http_error(error: HTTPException) -> Response:
    """What Quart itself refuses: a body that is too large or too slow, a malformed request."""
    code = error.code or 500
    if code == 413:
        return await _api_error(ApiError.too_large(MAX_BODY))
    if code == 404:
        return await _api_error(ApiError.no_such_path())
    if code == 405:
        return await _api_error(ApiError.method_not_allowed())
    reasons = {400: "BadRequest", 408: "Timeout"}
    return await _api_error(
        ApiError(code, reasons.get(code, "InternalError"), error.description or error.name)
    )


async def _unexpected(error: Exception) -> Response:
    """A fault of ours: the log has it all, the client is told that it was ours, the server goes on."""
    _log.error("request.failed", method=request.method, path=request.path, exc_info=error)
    return await _api_error(_fault(error))


def _said(error: Exception) -> ApiError:
    """The ApiError that an exception is, maybe wrapped by the nurseries of a backend; else our fault, logged."""
    inner: BaseException = error
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    if isinstance(inner, ApiError):
        return inner
    _log.error("stream.failed", exc_info=error)
    return _fault(error)


def _fault(error: Exception) -> ApiError:
    return ApiError.internal(f"{type(error).__name__}; the machine's log says more")
