"""Request bodies: bytes and a media type in, JSON-like values out; duplicate keys are noticed, nothing is
executed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from attrs import field, frozen

from . import protobuf
from .errors import ApiError
from .structure import too_deep

#: The most that a request may send, in bytes (Kubernetes' own limit for a request body); more is answered by
#: 413.
MAX_BODY: Final = 3 * 1024 * 1024
#: The most that one object may be as JSON, in bytes: awards carry it, and their frames are bounded. More:
#: 413.
MAX_OBJECT: Final = 1024 * 1024

#: YAML aliases in one body, and the bytes that they may expand to: enough for hand-written manifests. More:
#: 400.
MAX_ALIASES: Final = 100
MAX_EXPANSION: Final = 8 * 1024 * 1024

JSON: Final = "application/json"
YAML: Final = ("application/yaml", "text/yaml", "application/x-yaml", "text/x-yaml")
PROTOBUF: Final = "application/vnd.kubernetes.protobuf"
#: What curl says when nobody told it better: the body is then read as what it looks like.
GUESS: Final = ("", "application/x-www-form-urlencoded", "application/octet-stream", "text/plain")
OBJECT_TYPES: Final = (JSON, YAML[0], PROTOBUF)


@frozen
class Body:
    """A decoded body and the paths of keys that were given twice (the last one counts)."""

    value: Any
    duplicates: tuple[str, ...] = field(default=())


def media_type(header: str | None) -> str:
    """``application/json; charset=utf-8`` → ``application/json``."""
    return (header or "").partition(";")[0].strip().lower()


def read_object(data: bytes, content_type: str | None) -> Body:
    """A body that must be one object. Raises ApiError 400 (malformed), 413, 415 (media type)."""
    body = read_value(data, media_type(content_type))
    if not isinstance(body.value, dict):
        raise ApiError.bad_request("the body must be one object: a mapping with apiVersion and kind")
    return body


def read_value(data: bytes, media: str) -> Body:
    """A body of any shape by its media type; see :func:`read_object` for errors."""
    if len(data) > MAX_BODY:
        raise ApiError.too_large(MAX_BODY)
    if media == PROTOBUF or (media in GUESS and data.startswith(protobuf.MAGIC)):
        return Body(protobuf.decode(data))
    if media == JSON or media.endswith("+json"):
        return _read_json(data)
    if media in YAML or media.endswith("+yaml"):
        return _read_yaml(data)
    if media in GUESS:
        return _read_json(data) if data.lstrip()[:1] in (b"{", b"[", b"") else _read_yaml(data)
    raise ApiError.unsupported_media(media, OBJECT_TYPES)


def check_size(obj: Mapping[str, Any]) -> None:
    """Raises ApiError 413 if the object is over :data:`MAX_OBJECT` as JSON."""
    if len(json.dumps(obj, separators=(",", ":")).encode()) > MAX_OBJECT:
        raise ApiError.too_large(MAX_OBJECT)


def _read_json(data: bytes) -> Body:
    duplicates: list[str] = []
    try:
        value = json.loads(
            data,
            object_pairs_hook=lambda pairs: _mapping(pairs, duplicates),
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError.bad_request(f"the body is not valid JSON: {error}") from None
    return _checked(value, duplicates)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _mapping(pairs: Sequence[tuple[str, Any]], duplicates: list[str]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        duplicates.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return mapping


def _checked(value: Any, duplicates: Sequence[str]) -> Body:
    if too_deep(value):
        raise _too_deep()
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError):
        # YAML has binary values, sets and infinities; JSON can smuggle in half a surrogate pair.
        raise ApiError.bad_request(
            "the body holds a value that JSON cannot say, or text that is not Unicode"
        ) from None
    return Body(value, tuple(duplicates))


def _too_deep() -> ApiError:
    return ApiError.bad_request("the body nests too deeply")


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: dates stay texts, keys are texts, duplicate keys are noted, aliases are
    few."""

    duplicates: list[str]
    aliases: int
    most_aliases: int
    anchored: int

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As the parent class, but what aliases expand to stays within a few times the text ("billion
        laughs")."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.anchored or self.aliases > self.most_aliases:
                problem = "too many aliases" if not self.anchored else "an alias within an anchored part"
                raise yaml.composer.ComposerError(None, None, problem, None)
            return super().compose_node(parent, index)
        anchored = getattr(event, "anchor", None) is not None
        self.anchored += anchored
        try:
            return super().compose_node(parent, index)
        finally:
            self.anchored -= anchored


def _read_yaml(data: bytes) -> Body:
    try:
        text = data.decode("utf-8")
        return _load_yaml(text)
    except UnicodeDecodeError:
        raise ApiError.bad_request("the body is not valid YAML: it is not UTF-8") from None
    except yaml.YAMLError as error:
        raise ApiError.bad_request(f"the body is not valid YAML: {_one_line(error)}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError.bad_request(f"the body is not valid YAML: {error}") from None


def _load_yaml(text: str) -> Body:
    loader = _Loader(text)
    loader.duplicates, loader.aliases, loader.anchored = [], 0, 0
    loader.most_aliases = min(MAX_ALIASES, MAX_EXPANSION // max(len(text), 1))
    try:
        nodes = []
        while loader.check_node():
            node = loader.get_node()
            if not (isinstance(node, yaml.ScalarNode) and node.value == ""):
                nodes.append(node)
        if len(nodes) > 1:
            raise ApiError.bad_request(
                f"the body holds {len(nodes)} YAML documents; send one object a request"
            )
        value = loader.construct_document(nodes[0]) if nodes else None
    finally:
        loader.dispose()
    return _checked(value, loader.duplicates)


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    loader.flatten_mapping(node)
    pairs = [(_key(loader, key), loader.construct_object(value, deep=True)) for key, value in node.value]
    return _mapping(pairs, loader.duplicates)


def _key(loader: _Loader, node: yaml.Node) -> str:
    key = loader.construct_object(node, deep=True)
    if isinstance(key, bool):
        return "true" if key else "false"
    if not isinstance(key, str | int | float):
        raise yaml.constructor.ConstructorError(None, None, "a key must be a text", node.start_mark)
    return str(key)


def _construct_time(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _construct_time)
