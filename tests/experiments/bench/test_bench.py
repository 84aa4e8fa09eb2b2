"""`sonosweep bench`: what it writes, what it refuses, what a stop leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from datamodules.errors import InputError
from experiments.bench import run as bench_module
from experiments.bench.run import (
    BENCHMARKS,
    BenchSettings,
    bench_command,
    insert_table,
    keep_earlier,
    read_bench,
    table_of,
)
from experiments.bench.table import seconds_text

ROOT = Path(__file__).parents[3]


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"))  # noqa: PTH123 - for the test's life


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    settings = BenchSettings(names=["encoder", "data"], out=out, device="cpu", quick=True)
    written = bench_command(settings, quiet())
    assert json.loads((out / "bench.json").read_text()) == json.loads(json.dumps(written))
    assert [path.name for path in sorted(out.iterdir())] == ["bench.json", "bench.md"]
    return written


def test_bench_json_holds_the_schema(content):
    assert content["schema"] == 1
    assert content["machine"]["device"] == "cpu"
    assert {"cpu", "cores", "threads", "memory_gib"} <= content["machine"].keys()
    assert content["versions"]["torch"]
    assert content["settings"] == {
        "names": ["encoder", "data"],
        "quick": True,
        "images": "phantoms",
    }
    # What a benchmark needs is in the run, and everything in the table's order.
    assert list(content["results"]) == ["machine", "data", "encoder"]
    for name, result in content["results"].items():
        assert result["name"] == name
        assert content["seconds"][name] >= 0
        for timing in result["timings"]:
            assert len(timing["wall_s"]) == len(timing["cpu_s"]) >= 2
            assert min(timing["wall_s"]) > 0
            assert timing["fastest_s"] <= timing["per_unit_s"] <= timing["slowest_s"]
        for ratio in result["ratios"]:
            assert ratio["ratio"] == pytest.approx(ratio["published_s"] / ratio["ours_s"])
            if ratio["at_least"] is not None:
                assert ratio["reached"] == (ratio["ratio"] >= ratio["at_least"])


def test_targets_stand_beside_their_ratios(content):
    targets = {
        (name, ratio["label"]): ratio["at_least"]
        for name, result in content["results"].items()
        for ratio in result["ratios"]
    }
    assert targets == {
        ("data", "a training item"): 10,
        ("encoder", "tiny encoder, fp32"): None,
        ("encoder", "tiny encoder, bf16"): None,
        ("encoder", "vit_tiny encoder, fp32"): 1.8,
        ("encoder", "vit_tiny encoder, bf16"): 3.0,
    }


def test_the_table_is_made_of_the_results(content):
    text = table_of(content)
    rows = [line for line in text.splitlines() if line.startswith("| data | a training item")]
    ratio = content["results"]["data"]["ratios"][0]
    assert len(rows) == 1
    assert f"| {ratio['ratio']:.3g}x | 10x |" in rows[0]
    assert "numbers mean nothing" in text
    assert "#### machine" in text
    heads = [line for line in text.splitlines() if line.startswith("| What")]
    assert heads
    for line in text.splitlines():
        if line.startswith("|---"):
            assert set(line) == {"|", "-"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7200, "2 h"), (123.4, "123 s"), (1.234, "1.23 s"), (0.0456, "45.6 ms"), (2e-6, "2 us")],
)
def test_seconds_are_readable(seconds, text):
    assert seconds_text(seconds) == text


def test_mistakes_are_refused_before_anything_runs(tmp_path):
    for changes, said in (
        ({"names": ["encodr"]}, "benchmark encodr: no such one; use machine"),
        ({"device": "tpu"}, "use auto, cpu or cuda"),
        ({"data_root": tmp_path / "no"}, "no such folder"),
    ):
        with pytest.raises(InputError, match=said):
            bench_command(BenchSettings(**{"out": tmp_path / "out"} | changes), quiet())
        assert not (tmp_path / "out").exists()


def test_a_table_without_results_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="run sonosweep bench"):
        read_bench(tmp_path)
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_bench(tmp_path)
    (tmp_path / "bench.json").write_text('{"schema": 0}')
    with pytest.raises(InputError, match="schema 0, not 1"):
        read_bench(tmp_path)


def test_the_table_goes_between_its_markers(content, tmp_path):
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    insert_table(path, content)
    expected = f"before\n<!-- bench -->\n{table_of(content)}<!-- /bench -->\nafter\n"
    assert path.read_text() == expected
    insert_table(path, content)
    assert path.read_text() == expected
    path.write_text("no markers")
    with pytest.raises(InputError, match="has no lines"):
        insert_table(path, content)


def test_ctrl_c_leaves_the_results_before_it(tmp_path, monkeypatch):
    import experiments.bench.data as broken

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(broken, "bench_data", stop)
    settings = BenchSettings(names=["machine", "data"], out=tmp_path, device="cpu", quick=True)
    with pytest.raises(SystemExit) as ended:
        bench_command(settings, quiet())
    assert ended.value.code == 130
    assert list(read_bench(tmp_path)["results"]) == ["machine"]
    assert not list(tmp_path.glob("work-*"))


def test_an_earlier_run_is_kept_under_its_date(tmp_path):
    earlier = {"schema": 1, "date": "2026-01-02T03:04:05+00:00"}
    (tmp_path / "bench.json").write_text(json.dumps(earlier))
    (tmp_path / "bench.md").write_text("a table")
    settings = BenchSettings(names=["machine"], out=tmp_path, device="cpu", quick=True)
    assert read_bench(tmp_path) == earlier
    bench_command(settings, quiet())
    assert list(read_bench(tmp_path)["results"]) == ["machine"]
    assert json.loads((tmp_path / "bench-20260102T030405Z.json").read_text()) == earlier
    assert (tmp_path / "bench-20260102T030405Z.md").read_text() == "a table"


def test_unreadable_results_are_kept_under_their_files_date(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text("{")
    os.utime(path, (0, 0))
    keep_earlier(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["bench-19700101T000000Z.json"]
    keep_earlier(tmp_path)


def test_every_name_has_its_function():
    import importlib

    for name in BENCHMARKS:
        module = importlib.import_module(f"experiments.bench.{name}")
        assert callable(getattr(module, f"bench_{name}")), name


def run_command(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HC18_ROOT", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments", "bench", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_from_a_shell(tmp_path):
    wrong = run_command("encodr", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "no such one" in wrong.stderr
    done = run_command("machine", "--quick", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["results"]) == ["machine"]
    printed = run_command("--table", cwd=tmp_path)
    assert printed.stdout == (tmp_path / "runs/bench/bench.md").read_text()
    assert bench_module.JSON_NAME == "bench.json"
