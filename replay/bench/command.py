"""What `hourglass bench` does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from events.console import console, print_json, table
from replay.bench.machine import facts

if TYPE_CHECKING:
    from replay.bench.frame import Result

BENCHES = (
    "append",
    "replay",
    "fold",
    "verify",
    "tool",
    "start",
    "worker",
    "freeze",
    "create",
    "resume",
    "resume-tree",
    "storage",
    "suspend",
    "fork",
    "rebuild",
    "bisect",
    "idle",
    "dense",
    "egress",
)
"""In the order in which all are run; each is a module of this package."""


def bench(names: list[str], *, as_json: bool) -> None:
    """Run some benches, or all, and exit 1 where a promise does not hold.

    Raises:
        BenchImpossible: something that a bench needs is not here.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise typer.BadParameter(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    machine = facts()
    results = [_run(name) for name in names or BENCHES]
    if as_json:
        shapes = [result.shape(machine) for result in results]
        # One object for one bench, as a script that asks for one expects.
        print_json(shapes[0] if len(names) == 1 else shapes)
    else:
        _show(results, machine)
    if not all(result.holds for result in results):
        raise typer.Exit(1)


def _run(name: str) -> Result:
    module = import_module(f"replay.bench.{name.replace('-', '_')}")
    status = Console(stderr=True, highlight=False)
    with status.status(Text(f"bench {name}")) as spinner:
        result: Result = module.run(lambda what: spinner.update(Text(f"bench {name}: {what}")))
    return result


def _show(results: list[Result], machine: dict[str, Any]) -> None:
    screen = console()
    screen.print(Text(", ".join(f"{name} {value}" for name, value in machine.items() if value != ""), "dim"))
    for result in results:
        screen.print()
        rows = [(name, _number(one.value), one.unit) for name, one in result.figures.items()]
        screen.print(table([result.bench, ">value", "unit"], rows))
    promises = [(result.bench, promise) for result in results for promise in result.promises]
    screen.print()
    screen.print(
        table(
            ["bench", "promise", ">bound", ">measured", ""],
            [
                (
                    name,
                    one.name,
                    _number(one.bound),
                    _number(one.value),
                    Text("holds", "green") if one.holds else Text("broken", "bold red"),
                )
                for name, one in promises
            ],
        )
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
