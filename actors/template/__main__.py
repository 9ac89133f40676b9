"""Build the template, or bring its guest agent up to date: what `make setup` runs. Quick where all is done."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from actors.machines.volumes import open_volumes
from actors.settings import Settings, SettingsError
from actors.template.build import build_template
from actors.template.manifest import TemplateError


def main() -> int:
    """Exit code 0 once the template is there."""
    console = Console(stderr=True)
    columns = (TextColumn("template"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        settings = Settings.load()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("looking", total=1.0)
            build_template(
                open_volumes(settings.storage, settings.volumes, settings.pool_bytes),
                settings.template,
                lambda fraction, text: bar.update(task, completed=fraction, description=text),
            )
    except (TemplateError, SettingsError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
