"""Benchmarks of ours against the published way: pick, run, `bench.json`, table. Torch-free."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.samples import PHANTOM_MARKER
from datamodules.storage import write_json
from experiments.bench.cases import CASES
from experiments.bench.child import start_child
from experiments.bench.measure import Bench
from experiments.bench.table import bench_table
from experiments.store.provenance import code_state, machine, provenance, used_gpu

SCHEMA_VERSION = 1
JSON_NAME, TABLE_NAME = "bench.json", "bench.md"


def check(bench: Bench) -> list[str]:
    """The benchmarks to run, in their order; `InputError` for what is not there."""
    for name in bench.names:
        if name not in CASES:
            raise InputError(f"benchmark {name}: no such one; use {', '.join(CASES)}")
    if bench.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {bench.device}: use auto, cpu or cuda")
    if bench.data_root is not None and not bench.data_root.is_dir():
        raise InputError(f"{bench.data_root}: no such folder; give HC18's, or leave it out")
    return [name for name in CASES if name in (bench.names or CASES)]


def bench_command(bench: Bench) -> dict[str, Any]:
    """Run the benchmarks and give what `bench.json` holds; exit code 130 after Ctrl-C.

    What has been measured is kept whatever ends the run.
    """
    names, out = check(bench), bench.out
    import torch

    has_gpu = torch.cuda.is_available()
    if bench.device == "cuda" and not has_gpu:
        raise InputError("--device cuda: torch sees no GPU here; use cpu")
    if bench.device == "auto":
        bench.device = "cuda" if has_gpu else "cpu"
    date, threads = datetime.now(UTC).isoformat(timespec="seconds"), torch.get_num_threads()
    bench.save = lambda bench: _save(bench, date=date, threads=threads)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=out) as work, start_child() as bench.plain:
        bench.work = Path(work)
        try:
            for name in names:
                bench.run(name)
        except KeyboardInterrupt:
            bench.say(f"stopped; {out / JSON_NAME} holds: {', '.join(bench.results) or 'nothing'}")
            raise SystemExit(130) from None
    bench.say(f"{out / JSON_NAME} and {out / TABLE_NAME}")
    return read_bench(out)


def _save(bench: Bench, *, date: str, threads: int) -> None:
    """Write all that was found so far; an earlier run's results stay under their date."""
    files = [bench.out / JSON_NAME, bench.out / TABLE_NAME]
    if len(bench.results) == 1 and files[0].is_file():
        ended = datetime.fromtimestamp(files[0].stat().st_mtime, UTC)
        for path in filter(Path.is_file, files):
            path.rename(path.with_stem(f"bench-{ended:%Y%m%dT%H%M%SZ}"))
    root = bench.data_root
    is_phantom = root is None or (root / PHANTOM_MARKER).is_file()
    images = "phantoms" if is_phantom else "HC18"
    computes = {"device": bench.device, "threads": threads, "gpu": used_gpu().get("gpu")}
    content = {
        "schema": SCHEMA_VERSION,
        "date": date,
        "machine": machine() | computes,
        "versions": provenance()["versions"],
        "code": code_state(),
        "settings": {"names": list(bench.names), "quick": bench.quick, "images": images},
        "results": {name: bench.results[name].as_json() for name in CASES if name in bench.results},
    }
    write_json(files[0], content)
    files[1].write_text(bench_table(content))


def read_bench(out: Path) -> dict[str, Any]:
    """What an earlier run wrote; `InputError` where there is none of this version."""
    path = out / JSON_NAME
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; run sonosweep bench --out {out} first") from error
    if content.get("schema") != SCHEMA_VERSION:
        raise InputError(f"{path}: schema {content.get('schema')}, not {SCHEMA_VERSION}; run again")
    return content
