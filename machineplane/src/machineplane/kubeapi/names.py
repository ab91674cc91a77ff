"""The syntax of names, labels and annotations, with Kubernetes' own words for what is wrong with one."""

import re
from collections.abc import Iterator
from typing import Final

_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED: Final = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE: Final = rf"({_QUALIFIED})?"

LABEL_MESSAGE: Final = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
SUBDOMAIN_MESSAGE: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
QUALIFIED_MESSAGE: Final = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    f"character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
VALUE_MESSAGE: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'{_VALUE}')"
)


def label_problem(name: str) -> str | None:
    """What keeps ``name`` from being an RFC 1123 label (at most 63 characters), or None."""
    if len(name) > 63:
        return "must be no more than 63 characters"
    return None if re.fullmatch(_LABEL, name) else LABEL_MESSAGE


def subdomain_problem(name: str) -> str | None:
    """What keeps ``name`` from being an RFC 1123 subdomain (at most 253 characters), or None."""
    if len(name) > 253:
        return "must be no more than 253 characters"
    return None if re.fullmatch(_SUBDOMAIN, name) else SUBDOMAIN_MESSAGE


def key_problems(key: str) -> Iterator[str]:
    """What is wrong with the key of a label or annotation: ``[prefix/]name``."""
    prefix, slash, name = key.rpartition("/")
    if slash and (problem := subdomain_problem(prefix)) is not None:
        yield f"prefix part {problem}"
    if not name:
        yield "name part must be non-empty"
    elif len(name) > 63:
        yield "name part must be no more than 63 characters"
    elif not re.fullmatch(_QUALIFIED, name):
        yield QUALIFIED_MESSAGE


def value_problem(value: str) -> str | None:
    """What is wrong with a label's value, or None."""
    if len(value) > 63:
        return "must be no more than 63 characters"
    return None if re.fullmatch(_VALUE, value) else VALUE_MESSAGE
