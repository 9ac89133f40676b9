"""`hourglass up`: start Ray, the host and the controller, serve until told to stop, hand everything back.

SIGTERM and SIGINT drain: nothing more is claimed, calls that run may end within the drain time, results are posted,
leases are handed back. A second signal stops at once, which costs nothing but time: starting is recovering.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.api import forget_credentials
from actors.cluster import make_controller, make_host, start_ray
from actors.observer import Observer
from actors.queue import QueueRejected
from events.errors import HourglassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from actors.settings import Settings

log = logging.getLogger(__name__)

ADDRESS_FILE = "ray-address"
"""In the home while it is served: where other commands find the service."""
_RESTART_PAUSE_S = 1.0
_CLOSE_S = 30.0


@dataclass(eq=False)
class CannotServe(HourglassError):
    """{cause}."""

    cause: str
    step: str
    next_step = "{step}"


@contextlib.contextmanager
def only_server_of(home: Path) -> Iterator[None]:
    """Hold a home for one `up`. Raises `CannotServe` where another one has it, naming its process."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise CannotServe(
                f"another `hourglass up` (process {holder}) serves the home {home}",
                "stop that one, or give this one a home of its own with --home or HOURGLASS_HOME",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def take_key(settings: Settings) -> tuple[Settings, str]:
    """The settings without the environment's key, and the key; the process forgets what else it knows of credentials.

    Before anything is started: what is started inherits the environment, and actors are sent the settings. Raises
    `CannotServe` where the environment or its key is missing, and `SettingsError`.
    """
    if settings.environment_id is None:
        raise CannotServe(
            "no environment is named",
            "set ANTHROPIC_ENVIRONMENT_ID or --environment-id, or make one with `hourglass init`",
        )
    key = settings.read_environment_key()
    if key is None:
        raise CannotServe(
            "there is no environment key",
            "put it into a file and name that with --environment-key-file, or set ANTHROPIC_ENVIRONMENT_KEY",
        )
    forget_credentials()
    return settings.model_copy(update={"environment_key": None}), key.get_secret_value()


def serve(settings: Settings, key: str, *, dashboard: bool, ready: Callable[[list[str]], None]) -> None:
    """Serve an environment until SIGTERM or SIGINT.

    Args:
        ready: called once work is being polled for, with the addresses where metrics are served.

    Raises `CannotServe`, `MetricsPortTaken` and `NoTracing`.
    """
    with only_server_of(settings.home), contextlib.closing(Observer(settings)) as observer:
        start_ray(settings, dashboard=dashboard)
        address = settings.home / ADDRESS_FILE
        try:
            address.write_text(ray.get_runtime_context().gcs_address)
            if dashboard or settings.ray_address is not None:
                # What brings the dashboard brings Ray's metrics agent, and a cluster has both.
                observer.use_ray()
            asyncio.run(_serve(settings, key, ready, observer))
        finally:
            address.unlink(missing_ok=True)
            ray.shutdown()


async def _serve(settings: Settings, key: str, ready: Callable[[list[str]], None], observer: Observer) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            raise SystemExit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    host = make_host(settings)
    await _first_answer(host)
    controller = make_controller(settings, key)
    running = asyncio.create_task(_keep_running(controller))
    stopping = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(observer.run(host, controller), name="observer")
    ready(observer.addresses)
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    log.info("draining, at most %.0f s", settings.drain_seconds)
    try:
        await controller.drain.remote(settings.drain_seconds)
        await asyncio.wait_for(_answer(host.close.remote()), timeout=_CLOSE_S)
    except (RayActorError, RayTaskError, TimeoutError) as error:
        log.warning("not everything was handed back, the next start recovers it: %s", error)
    stopping.cancel()
    watching.cancel()
    await asyncio.wait([watching])
    await observer.finish()
    if running.done():
        running.result()
    running.cancel()


async def _answer(reference: Any) -> Any:
    return await reference


async def _first_answer(host: Any) -> None:
    """Wait for the host. Raises `CannotServe` with the reason where its constructor refused."""
    try:
        await host.ping.remote()
    except RayTaskError as error:
        raise _refused(error.cause if isinstance(error.cause, Exception) else error) from error
    except RayActorError as error:
        raise CannotServe(f"the host could not start: {_constructor_error(error)}", "run `hourglass doctor`") from error


def _constructor_error(error: RayActorError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _refused(cause: Exception) -> CannotServe:
    return CannotServe(str(cause), getattr(cause, "advice", "") or "run `hourglass doctor`")


async def _keep_running(controller: Any) -> None:
    """Run the controller; a restarted one is told to run again. Raises `CannotServe` where the queue refuses us."""
    while True:
        try:
            await controller.run.remote()
            return
        except QueueRejected as error:
            raise CannotServe(str(error).rstrip("."), error.step) from error
        except RayActorError as error:
            log.warning("the controller died, its replacement goes on: %s", str(error).splitlines()[0])
            await asyncio.sleep(_RESTART_PAUSE_S)
