"""A machine's folder on the host: `machines/<sandbox id>` in the storage folder. Ours alone; no guest writes here.

| file | what |
| --- | --- |
| `machine.json` | which machine this is; there as soon as it is a sandbox's |
| `orders.json` | what its supervisor is to start, and how to clear up after it |
| `sock`, `lock` | the supervisor's (see `actors.machines.supervisor`) |
| `cradle` | which process the cradle is (see `actors.machines.cradle`) |
| `killed` | we ended it |
| `exit.json` | how it ended |
| `stderr.log`, `runsc.log` | the last words of the machine, and of what brought it to life |
| `supervisor.log` | of a supervisor that broke |
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.machines.cradle import CRADLE_FILE
from actors.machines.locks import holder
from actors.machines.protocol import EndReason, MachineEnd
from events.types import Limits

EXIT = "exit.json"
_LOG_BYTES = 4000
_DETAIL_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """What `machine.json` holds."""

    machine_id: str
    sandbox_id: str
    template_root: str
    """Whose agent is mounted in it."""
    limits: Limits


class MachineFolder:
    """The folder of one sandbox's machine."""

    def __init__(self, storage: Path, sandbox_id: str) -> None:
        if not re.fullmatch(r"[a-z0-9-]{1,40}", sandbox_id):
            raise ValueError(f"{sandbox_id!r} can't name a sandbox: 1 to 40 of a-z, 0-9 and '-'")
        self.sandbox_id = sandbox_id
        self.path = storage / "machines" / sandbox_id
        self.start_lock = storage / "machines" / f"{sandbox_id}.lock"

    def move_in(self, slot: Path, record: MachineRecord) -> None:
        """Make the folder of a container that waited the machine's; whatever was there is gone."""
        self.clear()
        self._write(slot, "machine.json", {**asdict(record), "limits": record.limits.model_dump()})
        slot.rename(self.path)

    def clear(self) -> None:
        """Remove the folder. No error where there is none."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def record(self) -> MachineRecord | None:
        """Which machine this is, or was; None where there was none."""
        try:
            fields = json.loads((self.path / "machine.json").read_bytes())
            return MachineRecord(**{**fields, "limits": Limits.model_validate(fields["limits"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None  # Written at once before all else: no file, or a bad one, means there is no machine.

    @staticmethod
    def _write(folder: Path, name: str, value: object) -> None:
        """Write a JSON file, all at once or not at all."""
        fresh = folder / f"{name}.new"
        fresh.write_text(json.dumps(value), encoding="utf-8")
        fresh.replace(folder / name)

    def supervisor(self) -> int | None:
        """The process id of the machine's supervisor, which lives as long as its machine; None where there is none."""
        return holder(self.path / "lock")

    def cradle(self) -> int:
        """The process id of the machine's cradle, which lives as long as its machine. Raises `OSError`."""
        return int((self.path / CRADLE_FILE).read_text(encoding="ascii"))

    def end(self, machine_id: str) -> MachineEnd:
        """How a machine of this folder ended, once its supervisor is gone."""
        record = self.record()
        if record is None or record.machine_id != machine_id:
            # Cleared since, by a start or a removal, and both end what was there.
            return MachineEnd(EndReason.KILLED, None, "a new machine took its place, or its sandbox was removed")
        try:
            told = json.loads((self.path / EXIT).read_bytes())
            return MachineEnd(EndReason(told["reason"]), told["exit_code"], told["detail"])
        except FileNotFoundError:
            if (self.path / "killed").exists():
                return MachineEnd(EndReason.KILLED, None, "its supervisor ended with it")
            return MachineEnd(EndReason.EXITED, None, "its supervisor ended without a word")

    def last_words(self) -> str:
        """What the machine and its supervisor said on standard error. The guest's own text among it: for display."""
        said = []
        for name in ("runsc.log", "supervisor.log", "stderr.log"):
            try:
                with (self.path / name).open("rb") as file:
                    file.seek(max(os.fstat(file.fileno()).st_size - _LOG_BYTES, 0))
                    said.append(file.read(_LOG_BYTES).decode("utf-8", "replace").strip())
            except FileNotFoundError:
                continue
        printable = "".join(char if char.isprintable() else " " for char in " ".join(said).strip())
        return printable[-_DETAIL_CHARACTERS:]
