"""Run in a pod's network namespace: `intruder.py PEER@IP:PORT URL` tries a machine's doors as a pod's app may.

Says in one line of JSON what each answers: `rest` statuses by what was shown, and `mesh` errors by plane.
"""

import json
import ssl
import sys
import urllib.error
import urllib.request

import trio

from magik_mesh import MeshError, NodeConfig, open_node
from magik_proto.identity import BootstrapPeer, Identity
from magik_proto.membership import MembershipPolicy

PLANES = ("magik-machine/1", "magik-workload/1")


def rest(url: str, **headers: str) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), context=context, timeout=20
        ) as said:
            return int(said.status)
    except urllib.error.HTTPError as error:
        return error.code


async def mesh(peer: BootstrapPeer, plane: str) -> str:
    """The error of a call by a node that would itself admit anybody: the refusal is the other's."""
    config = NodeConfig(
        host="0.0.0.0",
        port=0,
        identity=Identity.generate(),
        policy=MembershipPolicy(None),
        plane=plane,
        bootstrap=(peer,),
    )
    async with open_node(config) as node:
        try:
            await node.call(peer.peer, "/magik/rpc/1.0.0", {}, timeout=15)
        except MeshError as error:
            return str(error)
    return "taken"


async def main(peer: str, url: str) -> None:
    paths = ("/api/v1/pods", "/v1/state?since=0")
    shown = {"nothing": {}, "a token": {"Authorization": "Bearer " + "0" * 64}}
    answers = {
        f"{path} with {what}": rest(url + path, **headers)
        for path in paths
        for what, headers in shown.items()
    }
    errors = {plane: await mesh(BootstrapPeer.parse(peer), plane) for plane in PLANES}
    print(json.dumps({"rest": answers, "mesh": errors}))


trio.run(main, *sys.argv[1:])
