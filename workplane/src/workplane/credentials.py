"""What the machine hands to the agent in a file: read once, and gone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from attrs import field, frozen

from magik_proto.identity import Identity
from workplane.answers import AnswerError, Fields, text
from workplane.config import parse_key

CREDENTIALS: Final = Path("/run/magik/agent/credentials")
MAX_BYTES: Final = 65_536
"""Of the file. At more: an error. A guess; a token and a key take some hundred bytes."""


class CredentialsError(Exception):
    """The file is there and cannot be used; the text says why, and repeats nothing of it."""


@frozen
class Credentials:
    """A token for the machine's socket, and for manual use a key."""

    token: str = field(repr=False)
    identity: Identity | None = field(default=None, repr=False)


def take(path: Path = CREDENTIALS) -> Credentials | None:
    """The credentials; the file is removed whatever it holds. None where there is none: this was started by hand.

    Raises `CredentialsError`, `workplane.config.ConfigError` for a wrong key.
    """
    try:
        with path.open("rb") as file:
            os.unlink(path)
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"{path} must be readable, and removable, for the agent: {error}") from error
    if len(content) > MAX_BYTES:
        raise CredentialsError(f"{path} holds more than {MAX_BYTES} bytes")
    try:
        fields = Fields(json.loads(content))
        token, key = fields.one("token", text), fields.maybe("key", text)
    except (ValueError, RecursionError):
        raise CredentialsError(f"{path} is no JSON") from None
    except AnswerError as error:
        raise CredentialsError(f"{path}: {error}") from None
    return Credentials(token, None if key is None else parse_key(key))
