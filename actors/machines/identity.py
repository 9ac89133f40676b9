"""Who a guest is: what tells one sandbox's machine from all others that began with the same memory."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import TYPE_CHECKING

from actors.machines.protocol import Identity

if TYPE_CHECKING:
    from actors.machines.protocol import MachineSpec

_ENTROPY_BYTES = 64


def identity_of(spec: MachineSpec, *, fresh: bool) -> Identity:
    """What a sandbox's guest is to be from now on; `fresh` where it was another's, or nobody's, so far.

    The machine-id is always the same for the same sandbox, as machine-id(5) wants it; entropy never is. One that is
    given a sandbox's hostname is to pass for it, and has its machine-id, too.
    """
    name = spec.hostname or spec.sandbox_id
    return Identity(
        time_ns=time.time_ns(),
        hostname=name,
        machine_id=hashlib.sha256(f"machine-id {name}".encode()).hexdigest()[:32],
        entropy=secrets.token_bytes(_ENTROPY_BYTES).hex(),
        fresh=fresh,
    )
