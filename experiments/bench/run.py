"""Benchmarks of ours against the published way: pick, run, `bench.json`, table. Torch-free."""

import importlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from datamodules.errors import InputError
from datamodules.storage import write_atomic, write_json
from experiments.bench.measure import Result, as_json, from_json
from experiments.bench.table import bench_table
from experiments.store.provenance import code_state, machine, provenance, used_gpu

SCHEMA_VERSION = 1
JSON_NAME = "bench.json"
START, END = "<!-- bench -->", "<!-- /bench -->"
BENCHMARKS: dict[str, str] = {
    "machine": "the peak of the matrix product, and of copying memory",
    "data": "PNG files against prepared arrays",
    "memory": "peak memory of a decoder fine-tune over 1,000 images",
    "encoder": "the image encoder, stock and ours",
    "finetune": "a decoder fine-tune at 5, 50 and 500 images",
    "evaluation": "scoring under five boxes",
    "sampling": "drawing from Stable Diffusion, one by one and in batches",
    "generator": "a LoRA step, latents cached or not",
    "startup": "the sweep's own time, and the start of a process",
    "ablation": "the whole 7-amount x 4-condition ablation",
    "scaling": "growth with images, image size, trials and devices",
    "views": "embedded views against fresh augmentation, in Dice and time (an hour)",
    "views100": "the same at 100 images (more than an hour)",
}
"""What there is, in the order of a run; each is `bench_NAME` in the module of that name."""
ONLY_BY_NAME = ("views", "views100")
"""Benchmarks that a run without names leaves out."""


@dataclass(kw_only=True)
class BenchSettings:
    """What the command line says."""

    names: Sequence[str] = ()
    """Benchmarks to run; none stands for all but those of hours."""
    out: Path = Path("runs/bench")
    device: str = "auto"
    quick: bool = False
    data_root: Path | None = None


def check(settings: BenchSettings) -> list[str]:
    """The benchmarks to run, in their order.

    Raises:
        InputError: For a name, device or folder that is not there.
    """
    for name in settings.names:
        if name not in BENCHMARKS:
            raise InputError(f"benchmark {name}: no such one; use {', '.join(BENCHMARKS)}")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {settings.device}: use auto, cpu or cuda")
    if settings.data_root is not None and not settings.data_root.is_dir():
        raise InputError(f"{settings.data_root}: no such folder; give HC18's, or leave it out")
    chosen = settings.names or [name for name in BENCHMARKS if name not in ONLY_BY_NAME]
    return [name for name in BENCHMARKS if name in chosen]


def bench_command(settings: BenchSettings, console: Console) -> dict[str, Any]:
    """Run the benchmarks; what has been measured is kept whatever ends the run.

    Returns:
        What `bench.json` holds.

    Raises:
        InputError: For a user's mistake.
        SystemExit: With code 130 after Ctrl-C.
    """
    names = check(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    run = _Run(settings, console)
    with tempfile.TemporaryDirectory(prefix="work-", dir=settings.out) as work:
        try:
            run.start(Path(work))
            for name in names:
                run.result(name)
        except KeyboardInterrupt:
            kept = ", ".join(run.results) or "nothing"
            console.print(f"stopped; {settings.out / JSON_NAME} holds: {kept}")
            raise SystemExit(130) from None
        finally:
            run.close()
    console.print(f"{settings.out / JSON_NAME} and {settings.out / 'bench.md'}", soft_wrap=True)
    return run.content()


def read_bench(out: Path) -> dict[str, Any]:
    """What an earlier run wrote.

    Raises:
        InputError: There is none, or it is of another version.
    """
    path = out / JSON_NAME
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: no results; run sonosweep bench --out {out} first") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON; remove it and run the bench again") from error
    if content.get("schema") != SCHEMA_VERSION:
        raise InputError(f"{path}: schema {content.get('schema')}, not {SCHEMA_VERSION}; run again")
    return content


def table_of(content: dict[str, Any]) -> str:
    """The markdown table of what `bench.json` holds."""
    return bench_table(content, [from_json(entry) for entry in content["results"].values()])


def insert_table(path: Path, content: dict[str, Any]) -> None:
    """Put the table between the markers of a Markdown file, so that no number is typed.

    Raises:
        InputError: The file has no markers.
    """
    text = path.read_text() if path.is_file() else ""
    head, found, rest = text.partition(START)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise InputError(f"{path}: has no lines {START} and {END}; add them for the table")
    write_atomic(path, f"{head}{START}\n{table_of(content)}{END}{tail}")


def keep_earlier(out: Path) -> None:
    """Rename an earlier run's results after their date, for a new run writes its own."""
    path = out / JSON_NAME
    if not path.is_file():
        return
    try:
        date = datetime.fromisoformat(json.loads(path.read_text())["date"])
    except (ValueError, KeyError, TypeError):
        date = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    for name in (JSON_NAME, "bench.md"):
        earlier = out / name
        if earlier.is_file():
            earlier.rename(earlier.with_stem(f"bench-{date.astimezone(UTC):%Y%m%dT%H%M%SZ}"))


class _Run:
    """Runs each benchmark once, whoever asks for it, and writes after each."""

    def __init__(self, settings: BenchSettings, console: Console) -> None:
        self.settings, self.console = settings, console
        # A `Bench`, which comes with torch.
        self.bench: Any = None
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self.date = datetime.now(UTC).isoformat(timespec="seconds")

    def start(self, work: Path) -> None:
        import torch

        from experiments.bench.context import Bench

        device = self.settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch sees no GPU here; use cpu")
        self.device, self.threads = device, torch.get_num_threads()
        self.bench = Bench(
            work=work,
            keep=self.settings.out.absolute(),
            data_root=self.settings.data_root,
            device=device,
            quick=self.settings.quick,
            run=self.result,
            say=self.console.print,
        )

    def close(self) -> None:
        """End what the benchmarks started."""
        if self.bench is not None:
            self.bench.plain.close()

    def result(self, name: str) -> Result:
        if name not in self.results:
            function = importlib.import_module(f"experiments.bench.{name}")
            started = datetime.now(UTC)
            self.console.print(f"{name}: {BENCHMARKS[name]} ...", highlight=False)
            found = getattr(function, f"bench_{name}")(self.bench)
            self.results[name] = found
            # Those that it asked for are in it too.
            self.seconds[name] = round((datetime.now(UTC) - started).total_seconds(), 2)
            if len(self.results) == 1:
                keep_earlier(self.settings.out)
            content = self.content()
            write_json(self.settings.out / JSON_NAME, content)
            (self.settings.out / "bench.md").write_text(table_of(content))
        return self.results[name]

    def content(self) -> dict[str, Any]:
        ordered = [name for name in BENCHMARKS if name in self.results]
        return {
            "schema": SCHEMA_VERSION,
            "date": self.date,
            "machine": machine()
            | {"device": self.device, "threads": self.threads, "gpu": used_gpu().get("gpu")},
            "versions": provenance()["versions"],
            "code": code_state(),
            "settings": {
                "names": list(self.settings.names),
                "quick": self.settings.quick,
                "images": "phantoms" if self.settings.data_root is None else "HC18",
            },
            "seconds": self.seconds,
            "results": {name: as_json(self.results[name]) for name in ordered},
        }
