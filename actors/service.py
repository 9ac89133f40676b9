"""A running service, from outside: what other commands ask of the `hourglass up` that serves a home."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from actors.cluster import NAMESPACE, host_name
from actors.up import ADDRESS_FILE, CannotServe
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actors.settings import Settings

_START = "start it with `hourglass up`, or name its home with --home or HOURGLASS_HOME"


@contextmanager
def connected(settings: Settings) -> Iterator[Any]:
    """The host actor of the service that serves this home. Raises `CannotServe` where none does."""
    address = settings.home / ADDRESS_FILE
    if not address.exists():
        raise CannotServe(f"no service runs on the home {settings.home}", _START)
    try:
        ray.init(address=address.read_text(), namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise CannotServe(f"the service on the home {settings.home} does not answer: {error}", _START) from error
    try:
        yield ray.get_actor(host_name(settings))
    except ValueError as error:
        raise CannotServe(f"the service on the home {settings.home} has no host", _START) from error
    finally:
        ray.shutdown()


@contextmanager
def asking(settings: Settings) -> Iterator[Callable[..., Any]]:
    """What to ask a running service with: the name of a method of `Operations`, and its arguments.

    Asking raises `CannotServe`, and the `HourglassError` of the operation.
    """
    with connected(settings) as host:

        def ask(operation: str, *arguments: Any) -> Any:
            try:
                return ray.get(host.operate.remote(operation, *arguments))
            except RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, HourglassError):
                    raise cause from error
                step = "see what `hourglass up` said"
                raise CannotServe(f"the service could not do it: {cause or error}", step) from error

        yield ask


def operate(settings: Settings, operation: str, *arguments: Any) -> Any:
    """One operation of a running service; see `asking`."""
    with asking(settings) as ask:
        return ask(operation, *arguments)
