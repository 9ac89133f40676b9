"""`hourglass template`: what new sandboxes start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from events.console import clean, console, print_json, print_table, say, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from actors.machines.volumes import Volumes
    from actors.settings import Settings
    from actors.template.manifest import Manifest
    from actors.template.steps import Recipe

template = typer.Typer(help="The root file systems that sandboxes start from.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Config = Annotated[Path | None, typer.Option(help="A TOML file of settings; default: ./hourglass.toml.")]
_Home = Annotated[Path | None, typer.Option(help="Where the log lies; also HOURGLASS_HOME.")]
_Storage = Annotated[Path | None, typer.Option(help="Where templates and sandboxes lie; also HOURGLASS_STORAGE.")]
_Name = Annotated[str | None, typer.Argument(help="Name of the template; default: the one that is set.")]

_LINE_CHARACTERS = 400


@template.command()
def build(
    name: _Name = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ORIGIN",
            help="debian (default), template:NAME, rootfs:DIR, tarball:FILE, oci:DIR[:TAG], oci-archive:FILE[:TAG], "
            "docker-archive:FILE[:NAME], docker://IMAGE.",
        ),
    ] = None,
    steps: Annotated[
        Path | None, typer.Option(help=r"A TOML file of [\[step]] tables: run, env, workdir, copy.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option(help="Build all of it anew, though it is there.")] = False,
    config: _Config = None,
    storage: _Storage = None,
    as_json: _Json = False,
) -> None:
    """Build a template; quick where it is there. Sandboxes that exist keep what they began with."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from actors.settings import Settings

    settings = Settings.load(config, storage=storage, template=name)
    columns = (TextColumn("template"), BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True, disable=as_json) as bar:
        task = bar.add_task("looking", total=1.0)
        manifest = _build(
            settings,
            origin,
            steps,
            force=force,
            progress=lambda fraction, text: bar.update(task, completed=fraction, description=clean(text, 80)),
            on_output=None if as_json else _Lines(bar.console).take,
        )
    _show_manifest(manifest, as_json=as_json)


@template.command()
def ls(config: _Config = None, storage: _Storage = None, as_json: _Json = False) -> None:
    """List the templates of this storage folder."""
    from actors.settings import Settings
    from actors.template.catalog import list_templates

    settings = Settings.load(config, storage=storage)
    listed = list_templates(_volumes(settings))
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "default": one.name == settings.template,
                    "problem": one.problem,
                    "sandboxes": one.sandboxes,
                    "manifest": one.manifest
                    and one.manifest.model_dump(mode="json", exclude={"packages", "programs", "env"}),
                }
                for one in listed
            ]
        )
        return
    rows: list[tuple[object, ...]] = []
    for one in listed:
        mark = one.name + (" *" if one.name == settings.template else "")
        made = one.manifest
        if made is None:
            rows.append((mark, one.problem, "", "", "", len(one.sandboxes)))
        else:
            built = f"{made.built_at:%Y-%m-%d %H:%M}"
            rows.append((mark, made.origin, len(made.steps), size(made.bytes), built, len(one.sandboxes)))
    print_table(["template", "from", ">steps", ">size", "built (UTC)", ">sandboxes"], rows)


@template.command()
def show(name: _Name = None, config: _Config = None, storage: _Storage = None, as_json: _Json = False) -> None:
    """Show what a template was made from, and what was found by looking into it."""
    from actors.settings import Settings
    from actors.template.manifest import load_manifest

    settings = Settings.load(config, storage=storage, template=name)
    volumes = _volumes(settings)
    volumes.prepare()
    _show_manifest(load_manifest(volumes.templates, settings.template), as_json=as_json)


@template.command()
def rm(
    name: Annotated[str, typer.Argument(help="Name of the template.")],
    config: _Config = None,
    home: _Home = None,
    storage: _Storage = None,
    as_json: _Json = False,
) -> None:
    """Remove a template; refused while a sandbox that was made from it is not gone."""
    from actors.machines.node import Node
    from actors.settings import Settings
    from actors.template.catalog import remove_template

    settings = Settings.load(config, home=home, storage=storage, template=name)
    node = Node(settings.storage, settings.volumes, settings.pool_bytes, None)
    roots = remove_template(node, name, _alive(settings, name))
    if as_json:
        print_json({"removed": name, "roots": roots})
    else:
        say(f"removed {name}")


def _alive(settings: Settings, name: str) -> list[str]:
    """Sandboxes of a template that live, by the log of this home."""
    from events.needs import sandboxes_of
    from events.sandbox import Phase, load
    from events.sqlite_log import SqliteLog

    path = settings.home / "log.db"
    if not path.exists():
        return []
    log = SqliteLog(path, read_only=True)
    try:
        states = {sandbox_id: load(log, sandbox_id) for sandbox_id in sandboxes_of(log)}
    finally:
        log.close()
    return [one for one, state in states.items() if state.template == name and state.phase is not Phase.KILLED]


def _volumes(settings: Settings) -> Volumes:
    from actors.machines.volumes import open_volumes

    return open_volumes(settings.storage, settings.volumes, settings.pool_bytes)


def _build(
    settings: Settings,
    origin: str | None,
    file: Path | None,
    *,
    force: bool,
    progress: Callable[[float, str], None],
    on_output: Callable[[bytes], None] | None,
) -> Manifest:
    from actors.template.build import build_template
    from actors.template.derive import build_from
    from actors.template.manifest import TemplateError, load_manifest
    from actors.template.origin import parse_origin
    from actors.template.steps import Recipe, load_recipe

    name, volumes = settings.template, _volumes(settings)
    recipe: Recipe = load_recipe(file) if file is not None else Recipe(origin=None, steps=(), context=Path.cwd())
    said = origin or recipe.origin
    start = parse_origin(said or "debian")
    if start.kind != "debian" or recipe.steps:
        return build_from(
            volumes, name, start, recipe, limits=settings.limits, progress=progress, on_output=on_output, force=force
        )
    volumes.prepare()
    try:
        there = load_manifest(volumes.templates, name)
    except TemplateError:
        there = None  # Missing or broken: it is built.
    if there is not None and there.is_derived:
        if said is None and force:
            how = f"--from {there.origin}" + (" --steps FILE" if there.steps else "")
            raise TemplateError(f"the template {name!r} is not of this distribution alone; say {how} again")
        force = force or said is not None
    return build_template(volumes, name, progress, force=force)


class _Lines:
    """Prints what a step's command prints, line by line; untrusted."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._rest = b""

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        # What never ends its line is shown in pieces.
        if len(self._rest) > _LINE_CHARACTERS:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r").replace("\t", "    ")
            self._screen.print(Text(f"  {clean(text, _LINE_CHARACTERS)}", style="dim"), soft_wrap=True)


def _show_manifest(manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    say(f"{manifest.name}: {manifest.distribution} ({manifest.architecture}), {manifest.bytes // 1024**2} MiB")
    say(f"from {manifest.origin}" + (f" ({manifest.origin_id})" if manifest.origin_id else ""))
    for number, step in enumerate(manifest.steps, 1):
        ((kind, what), *_) = step.items()
        say(f"  {number}. {kind} {what}")
    if manifest.env:
        say("env " + " ".join(f"{key}={value}" for key, value in sorted(manifest.env.items())))
    if manifest.workdir:
        say(f"workdir {manifest.workdir}")
    if manifest.digest:
        say(f"digest blake3:{manifest.digest}")
    print_table(["program", "version"], sorted(manifest.programs.items()))
    say(f"and {len(manifest.packages)} packages; --json lists them")
