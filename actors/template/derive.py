"""Making a template from any origin, with steps: `build_from`.

A chain of layers, each named by what led to it: the origin's files, then one for each step that changes files. What is
named is whole, and is not made again. The template is a copy of the last one, with the guest agent, its own Python and
the defaults put in; it is looked into by booting it, and only then becomes the template.

Nothing of a root that is not ours is run on the host, and no link in it is followed there.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from actors.machines.locks import locked
from actors.machines.mounts import run
from actors.template import contents
from actors.template.agent import AGENT_FOLDER, agent_digest, install_agent
from actors.template.build import build_template, drop_leftovers
from actors.template.context import copy_into
from actors.template.finish import inspect, prepare_root, write_defaults
from actors.template.layers import Layers, layer_key
from actors.template.manifest import (
    BASE,
    Manifest,
    StepFailed,
    TemplateError,
    TemplateMissing,
    load_manifest,
    save_manifest,
)
from actors.template.oci import architecture
from actors.template.rooted import Rooted
from actors.template.runtime import OWN, copy_runtime
from actors.template.start import Start, open_start
from actors.template.steps import CopyStep, EnvStep, Recipe, RunStep, Step, WorkdirStep
from actors.template.workshop import Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actors.machines.volumes import Volumes
    from actors.template.build import Progress
    from actors.template.origin import Origin
    from events.types import Limits

    Listener = Callable[[bytes], None]
    """Hears what the commands of steps print, untrusted."""

_WORKDIR = "/workspace"
_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
_STEPS = (0.35, 0.85)
"""How far a build is when its steps begin, and end."""


def build_from(
    volumes: Volumes,
    name: str,
    origin: Origin,
    recipe: Recipe,
    *,
    limits: Limits,
    progress: Progress,
    on_output: Listener | None = None,
    force: bool = False,
) -> Manifest:
    """The template, built where it is not there just so; one build at a time on a node.

    Args:
        limits: of the machines in which steps run.
        force: make every layer anew.

    Raises:
        StepFailed: a step's command failed; there is no new template, and the steps before it are kept.
        TemplateError: the origin can't be used, a step can't be done, or the storage failed.
    """
    if name == BASE:
        raise TemplateError(
            f"the template {BASE!r} is always this distribution's packages, which others are made with; "
            "choose another name, and set `template` to it"
        )
    if (origin.kind, origin.place) == ("template", name):
        raise TemplateError(f"the template {name!r} can't be made from itself; give one of them another name")
    try:
        return _build(volumes, name, origin, recipe, limits, progress, on_output, force)
    except OSError as error:
        raise TemplateError(f"the template {name!r} can't be built: {error}; see to it, and build again") from error


def _build(
    volumes: Volumes,
    name: str,
    origin: Origin,
    recipe: Recipe,
    limits: Limits,
    progress: Progress,
    on_output: Listener | None,
    force: bool,
) -> Manifest:
    volumes.prepare()
    layers = Layers(volumes)
    progress(0.0, "waiting for another build")
    with locked(layers.lock), Workshop(volumes, limits) as shop, contextlib.ExitStack() as stack:
        shop.sweep()
        layers.drop_unused()
        base = build_template(volumes, BASE, lambda fraction, text: progress(0.1 * fraction, text))
        progress(0.1, f"looking at {origin}")
        start = stack.enter_context(open_start(volumes, origin))
        build = _Build(volumes, layers, shop, progress, on_output, force)
        build.agent = build.layer(layer_key("agent", agent_digest(), base.built_at.isoformat()), _agent(volumes, base))
        build.begin(start)
        for number, step in enumerate(recipe.steps, 1):
            build.step(step, recipe.context, number, len(recipe.steps))
        manifest = None if force else _same(volumes, name, build)
        if manifest is None:
            manifest = build.finish(name, origin, start, recipe)
        layers.drop_unused()
    progress(1.0, "done")
    return manifest


@dataclass(slots=True)
class _Build:
    volumes: Volumes
    layers: Layers
    shop: Workshop
    progress: Progress
    on_output: Listener | None
    force: bool
    began: float = field(default_factory=time.monotonic)
    agent: Path | None = None
    """A root that has the agent for the machines in which steps run."""
    root: Path | None = None
    """The last layer."""
    key: str = ""
    """What led here: of the last step, whether it made a layer or not."""
    keys: list[str] = field(default_factory=list)
    """Of the layers."""
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = ""

    def layer(self, key: str, fill: Callable[[str], object]) -> Path:
        """The layer of a key, made where there is none."""
        path = None if self.force else self.layers.find(key)
        if path is None:
            path = self.layers.make(key, fill)
        self.layers.touch(key)
        return path

    def begin(self, start: Start) -> None:
        """Have the origin's files."""
        self.env, self.workdir, self.key = dict(start.env), start.workdir, start.key

        def fill(name: str) -> None:
            root = start.fill(name, lambda done: self.progress(0.2, f"unpacking, {done // 1024**2} MiB"))
            if start.foreign:
                prepare_root(root)

        self.root = self.layer(start.key, fill)
        self.keys.append(start.key)

    def step(self, step: Step, context: Path, number: int, count: int) -> None:
        """Do one step, or find it done."""
        first, last = _STEPS
        self.progress(first + (last - first) * (number - 1) / count, f"step {number} of {count}: {step}")
        copied = copy_into(context, step.copied, None) if isinstance(step, CopyStep) else ""
        self.key = layer_key(self.key, step.key, copied)
        if isinstance(step, EnvStep):
            self.env.update(step.env)
        elif isinstance(step, WorkdirStep):
            self.workdir = step.workdir
        else:
            fill = self._copy(step, context, copied) if isinstance(step, CopyStep) else self._run(step)
            try:
                self.root = self.layer(self.key, fill)
            except StepFailed as error:
                lines = [line for line in error.output.splitlines() if line.strip()][-3:]
                said = f"it said: {' | '.join(lines)[-1000:]}" if lines else "it said nothing"
                raise StepFailed(f"step {number} of {count} ({step}) {error}; {said}", error.output) from error
            self.keys.append(self.key)

    def _run(self, step: RunStep) -> Callable[[str], None]:
        root, agent = self._roots()
        command = run_command(step.run, self.env, self.workdir or _WORKDIR)

        def fill(name: str) -> None:
            self.shop.run(root, agent, command, seconds=step.timeout, on_output=self.on_output, keep=name)

        return fill

    def _copy(self, step: CopyStep, context: Path, seen: str) -> Callable[[str], None]:
        root, _ = self._roots()

        def fill(name: str) -> None:
            self.volumes.clone_root(str(root.relative_to(self.volumes.templates)), name)
            with Rooted(self.volumes.templates / name) as target:
                copied = copy_into(context, step.copied, target)
            if copied != seen:
                raise TemplateError(f"{step.copied.source} in {context} changed while it was copied; build again")

        return fill

    def _roots(self) -> tuple[Path, Path]:
        if self.root is None or self.agent is None:
            raise AssertionError("a step before the origin's files")
        return self.root, self.agent

    def finish(self, name: str, origin: Origin, start: Start, recipe: Recipe) -> Manifest:
        """Make the template of the last layer."""
        layer, agent = self._roots()
        self.progress(_STEPS[1], "putting the guest agent in")
        root_name = f"{name}-{secrets.token_hex(4)}"
        with locked(self.volumes.templates / f"{name}.lock"):
            drop_leftovers(self.volumes, name)
            try:
                root = self.volumes.clone_root(str(layer.relative_to(self.volumes.templates)), root_name)
                _put_agent(root, agent)
                write_defaults(root, self.env, self.workdir)
                self.volumes.seal_root(root_name)
                self.progress(0.9, "booting it")
                found = inspect(self.shop, root)
                self.progress(0.95, "taking its digest")
                manifest = Manifest(
                    name=name,
                    root=root_name,
                    built_at=datetime.now(UTC),
                    distribution=found.distribution,
                    suite=found.suite,
                    architecture=architecture(),
                    agent_digest=agent_digest(),
                    programs=found.programs,
                    packages=found.packages,
                    bytes=contents.size(root),
                    build_seconds=round(time.monotonic() - self.began, 1),
                    origin=str(origin),
                    origin_id=start.id,
                    steps=[step.model_dump(mode="json", by_alias=True, exclude={"kind"}) for step in recipe.steps],
                    env=self.env,
                    workdir=self.workdir,
                    layers=self.keys,
                    digest=contents.digest(root),
                )
            except BaseException:
                # What can't be removed now is removed by the next build.
                with contextlib.suppress(OSError):
                    self.volumes.drop_root(root_name)
                raise
            save_manifest(self.volumes.templates, manifest)
            drop_leftovers(self.volumes, name)
        return manifest


def run_command(command: str, env: dict[str, str], workdir: str) -> str:
    """What the shell of a step's machine is told. A quote that the step leaves open ends with the step."""
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in env.items() if re.fullmatch(_VARIABLE, name)
    )
    folder = shlex.quote(workdir)
    return (
        f"(\n{exports}[ -d {folder} ] || mkdir -p {folder}\ncd {folder} || exit\nset -e\neval {shlex.quote(command)}\n)"
    )


def _same(volumes: Volumes, name: str, build: _Build) -> Manifest | None:
    """The template as it is, where this build would make no other."""
    try:
        there = load_manifest(volumes.templates, name)
    except TemplateMissing:
        return None
    except TemplateError:
        return None  # Broken: that is what a build mends.
    same = (there.layers, there.env, there.workdir) == (build.keys, build.env, build.workdir)
    return there if same and there.agent_digest == agent_digest() else None


def _agent(volumes: Volumes, base: Manifest) -> Callable[[str], None]:
    def fill(name: str) -> None:
        if base.is_derived:
            raise TemplateError(f"the template {BASE!r} is not this distribution's own; build it with --force")
        root = volumes.new_root(name)
        copy_runtime(volumes.templates / base.root, root / AGENT_FOLDER / OWN)
        install_agent(root)

    return fill


def _put_agent(root: Path, agent: Path) -> None:
    """Put the agent, with its own Python, into a root that is not ours."""
    parent, _, _ = AGENT_FOLDER.rpartition("/")
    with Rooted(root) as inside:
        if not inside.is_folder(parent, follow=False):
            inside.make_folder(parent, mode=0o755)
        inside.remove(AGENT_FOLDER)
    # The way there is made of folders now, and nobody else writes here.
    run(
        ["cp", "--archive", "--reflink=auto", "--no-target-directory", agent / AGENT_FOLDER, root / AGENT_FOLDER],
        timeout=600,
    )
