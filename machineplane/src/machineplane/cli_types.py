"""Option types that several commands share."""

import click

from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer


class PeerType(click.ParamType[BootstrapPeer]):
    """``<identity_hex>@<ip:port>``"""

    name = "ID@IP:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> BootstrapPeer:
        if isinstance(value, BootstrapPeer):
            return value
        try:
            return BootstrapPeer.parse(str(value))
        except ProtocolError as error:
            self.fail(str(error), param, ctx)


class LabelType(click.ParamType[tuple[str, str]]):
    """``key=value``"""

    name = "KEY=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return str(value[0]), str(value[1])
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r}: expected key=value", param, ctx)
        return key, text
