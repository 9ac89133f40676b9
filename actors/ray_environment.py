"""What Ray reads from the environment when it is first imported; imports nothing of it, and goes before it."""

from __future__ import annotations

import os


def prepare_ray(*, loopback: bool) -> None:
    """Set how Ray behaves in this process and in those that it starts; call it before anything imports `ray`.

    With `loopback`, every port is bound to it: Ray takes `_node_ip_address="127.0.0.1"` for the machine's public
    address unless it is told, by a variable named after the systems where it does so by default, that there will be
    no second node.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # As `ray.init` has it for a local cluster; a process that joins one is not told, and would come without its token.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if loopback:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
