"""`python -m tests.fuzz`: each harness with atheris for a given time, one after the other; see `make fuzz`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.harnesses import HARNESSES


def main() -> int:
    """How many harnesses found something, at most 1; 2 where atheris is not there."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what comes from a guest.")
    parser.add_argument("harness", nargs="*", help=f"of {', '.join(HARNESSES)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="of corpora, and of inputs that fail")
    options = parser.parse_args()
    unknown = set(options.harness) - set(HARNESSES)
    if unknown:
        parser.error(f"there is no harness {', '.join(sorted(unknown))}; there are {', '.join(HARNESSES)}")
    if find_spec("atheris") is None:
        print("atheris is not installed; next: pip install -e '.[fuzz]' (x86-64 alone)", file=sys.stderr)
        return 2
    failed = [name for name in options.harness or HARNESSES if not _fuzz(name, options.seconds, options.folder)]
    for name in failed:
        print(f"{name} found something: the input is {options.folder / name}-failed-*", file=sys.stderr)
    return bool(failed)


def _fuzz(name: str, seconds: int, folder: Path) -> bool:
    """Whether nothing was found. A process of its own: libFuzzer ends the one that it runs in."""
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(HARNESSES[name].SEEDS):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", name, str(corpus)]
    bounds = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=2048"]
    print(f"--- {name}, {seconds} s", flush=True)
    return subprocess.run([*command, *bounds, f"-artifact_prefix={corpus}-failed-"], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
