"""`sonosweep bench`: what it writes, what it refuses, what a stop leaves."""

import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.phantom import write_phantom
from experiments.bench.cases import CASES
from experiments.bench.measure import Bench
from experiments.bench.run import bench_command, check, read_bench
from experiments.bench.table import bench_table, seconds_text
from experiments.results.readme import replace_block

ROOT = Path(__file__).parents[3]


def bench(*names, out, **changes):
    return Bench(**{"names": names, "out": out, "device": "cpu", "quick": True} | changes)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "out"
    written = bench_command(bench("encoder", "data", out=out))
    assert json.loads((out / "bench.json").read_text()) == written
    assert [path.name for path in sorted(out.iterdir())] == ["bench.json", "bench.md"]
    return written


def test_bench_json_holds_the_schema(content):
    assert content["schema"] == 1
    assert content["machine"]["device"] == "cpu"
    assert {"cpu", "cores", "threads", "memory_gib"} <= content["machine"].keys()
    assert content["versions"]["torch"]
    settings = {"names": ["encoder", "data"], "quick": True, "images": "phantoms"}
    assert content["settings"] == settings
    # What a benchmark needs is in the run, and everything in the table's order.
    assert list(content["results"]) == ["machine", "data", "encoder"]
    for name, result in content["results"].items():
        assert result["name"] == name
        for timing in result["timings"]:
            assert len(timing["wall_s"]) == len(timing["cpu_s"]) >= 2
            assert 0 < timing["fastest_s"] <= timing["per_unit_s"] <= timing["slowest_s"]
    assert content["results"]["data"]["published"].startswith("files decoded")
    ratios = {
        (name, ratio["label"]): (ratio["at_least"], ratio["ratio"])
        for name, result in content["results"].items()
        for ratio in result["ratios"]
    }
    labels = [f"{b} encoder, {p}" for b in ("tiny", "vit_tiny") for p in ("fp32", "bf16")]
    assert list(ratios) == [("data", "a training item"), *(("encoder", name) for name in labels)]
    assert ratios["data", "a training item"][0] == 10
    encoder = content["results"]["encoder"]
    stock, _, half = (timing["per_unit_s"] for timing in encoder["timings"][:3])
    assert ratios["encoder", "tiny encoder, bf16"] == (None, pytest.approx(stock / half))


def test_the_table_is_made_of_the_results(content):
    text = bench_table(content)
    ratio = content["results"]["data"]["ratios"][0]
    (row,) = [line for line in text.splitlines() if line.startswith("| data | a training item")]
    assert f"| {ratio['ratio']:.3g}x | 10x |" in row
    assert "numbers mean nothing" in text
    assert "#### machine" in text
    assert "Published: files decoded and ellipses fitted at every read. Ours: prepared" in text
    # A file of before the ways stood in it.
    old = {k: v for k, v in content["results"]["data"].items() if k not in ("published", "same")}
    assert "Published:" not in bench_table(content | {"results": {"data": old}})
    assert {len(line.split("|")) for line in text.splitlines() if line[:3] == "|--"} == {7, 10}
    installed = {"git_sha": None, "installed": "0.1.0, files 0a1b"}
    assert ", code 0.1.0, files 0a1b." in bench_table(content | {"code": installed})
    times = (7200, 123.4, 1.234, 0.0456, 2e-6)
    assert [*map(seconds_text, times)] == ["2 h", "123 s", "1.23 s", "45.6 ms", "2 us"]


def test_every_case_has_its_function_its_targets_and_its_test():
    for name, case in CASES.items():
        assert callable(pkgutil.resolve_name(f"experiments.bench.{case.function}")), name
        assert bool(case.published) == bool(case.ours) == (name != "machine"), name
        if case.same:
            file, test = case.same.split("::")
            assert f"def {test}(" in (ROOT / file).read_text(), name
    bounds = {n: CASES[n].target("vit_b", device="cuda") for n in ("finetune", "ablation")}
    assert bounds == {"finetune": 50, "ablation": None}
    assert CASES["finetune"].target("vit_b", device="cpu") == 30
    steps = "{images} embeddings read, then {steps} steps of 5"
    sizes = {name: each[1] for name, each in CASES["memory"].sizes.items()}
    assert CASES["memory"].target(f"ours: {steps.format(**sizes)}", device="cpu") == 2.0
    assert check(Bench(names=["sampling", "data"])) == ["data", "sampling"]
    assert check(Bench()) == list(CASES)


def test_mistakes_are_refused_before_anything_runs(tmp_path):
    for changes, said in (
        ({"names": ["encodr"]}, "benchmark encodr: no such one; use machine"),
        ({"device": "tpu"}, "use auto, cpu or cuda"),
        ({"data_root": tmp_path / "no"}, "no such folder"),
    ):
        with pytest.raises(InputError, match=said):
            bench_command(bench(out=tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()
    for text, said in (
        ("", "run sonosweep bench"),
        ("{", "run sonosweep bench"),
        ('{"schema": 0}', "schema 0, not 1"),
    ):
        if text:
            (tmp_path / "bench.json").write_text(text)
        with pytest.raises(InputError, match=said):
            read_bench(tmp_path)


@pytest.fixture
def quick_machine(monkeypatch):
    """A machine of which nothing is measured."""
    monkeypatch.setattr("experiments.bench.machine.bench_machine", lambda *_: None)


@pytest.mark.usefixtures("quick_machine")
def test_ctrl_c_leaves_the_results_before_it(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.bench.data.bench_data", stop)
    with pytest.raises(SystemExit) as ended:
        bench_command(bench("machine", "data", out=tmp_path))
    assert ended.value.code == 130
    assert list(read_bench(tmp_path)["results"]) == ["machine"]
    assert not list(tmp_path.glob("work-*"))


@pytest.mark.usefixtures("quick_machine")
def test_phantoms_are_not_called_hc18(tmp_path, hc18_folder):
    write_phantom(tmp_path / "drawn", n_exams=3, seed=0, size_hw=(54, 80))
    for root, said in ((tmp_path / "drawn", "phantoms"), (hc18_folder, "HC18")):
        found = bench_command(bench("machine", out=tmp_path / said, data_root=root))
        assert found["settings"]["images"] == said


@pytest.mark.usefixtures("quick_machine")
def test_an_earlier_run_is_kept_under_its_date(tmp_path):
    for name in ("bench.json", "bench.md"):
        (tmp_path / name).write_text("earlier")
        os.utime(tmp_path / name, (0, 0))
    bench_command(bench("machine", out=tmp_path))
    assert list(read_bench(tmp_path)["results"]) == ["machine"]
    earlier = [tmp_path / f"bench-19700101T000000Z.{ending}" for ending in ("json", "md")]
    assert [path.read_text() for path in earlier] == ["earlier"] * 2
    assert len(list(tmp_path.iterdir())) == 4


def test_the_command(sonosweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HC18_ROOT", raising=False)
    code, _, errors = sonosweep("bench", "encodr")
    assert (code, errors.count("\n"), "no such one" in errors) == (2, 1, True)
    # What measures replaces its process.
    words = [sys.executable, "-m", "experiments", "bench", "machine", "--quick", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "matrix product, fp32" in done.stdout
    table = (tmp_path / "runs/bench/bench.md").read_text()
    assert sonosweep("bench", "--table")[1] == table
    (tmp_path / "page.md").write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert sonosweep("bench", "--table", "--into", "page.md")[0] == 0
    text = f"before\n<!-- bench -->\n{table}<!-- /bench -->\nafter\n"
    assert (tmp_path / "page.md").read_text() == text
    with pytest.raises(InputError, match="no such file"):
        replace_block(tmp_path / "none.md", table, kind="bench")
