"""Making a guest itself, after memory was brought back that another guest may have begun with too.

Done while everything else in the guest stands still. The kernel's own random numbers need no help under gVisor, which
takes them from the host's; the entropy is for a kernel that was brought back with its generator.
"""

from __future__ import annotations

import os
import re
import time

try:
    from _socket import sethostname  # the `socket` module around it costs ten times the memory of this
except ImportError:
    from socket import sethostname

MACHINE_ID = "/etc/machine-id"
_DBUS_ID = "/var/lib/dbus/machine-id"
_HOSTNAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def become(hostname: str, machine_id: str, entropy: bytes, time_ns: int, *, fresh: bool) -> dict[str, object]:
    """Be this guest; what can be read back of it. Raises `OSError` and `ValueError` where something can't be done."""
    offset = time.time_ns() - time_ns
    if not _HOSTNAME.fullmatch(hostname) or not re.fullmatch(r"[0-9a-f]{32}", machine_id):
        raise ValueError("no hostname, or no machine-id")
    with open("/dev/urandom", "wb", buffering=0) as pool:
        pool.write(entropy)
    _set_hostname(hostname)
    if fresh:
        _replace(MACHINE_ID, machine_id + "\n")
        if os.path.isfile(_DBUS_ID) and not os.path.islink(_DBUS_ID):
            _replace(_DBUS_ID, machine_id + "\n")
        _replace("/etc/hostname", hostname + "\n")
    return {"hostname": os.uname().nodename, "machine_id": _read(MACHINE_ID), "clock_offset_ns": offset}


def _set_hostname(hostname: str) -> None:
    if os.uname().nodename != hostname:
        sethostname(hostname)


def _replace(path: str, text: str) -> None:
    fresh = f"{path}.new"
    with open(fresh, "w", encoding="ascii") as file:
        file.write(text)
    os.replace(fresh, path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64).strip()
    except FileNotFoundError:
        return ""
