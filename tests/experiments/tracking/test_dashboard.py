"""`sonosweep dashboard`: a sweep's runs in the terminal, and on a server that is a fake."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from folder_parts import write_hc18_folder
from rich.console import Console
from wandb_parts import clean_environment, finished_sweep
from wandb_server import WandbServer

from datamodules.errors import InputError
from experiments.config.schema import resolved
from experiments.plan.record import planned
from experiments.store.plan_file import write_plan
from experiments.store.runs import hold
from experiments.tracking import dashboard as tracked
from experiments.tracking.dashboard import (
    LoggedRun,
    dashboard_command,
    find_runs,
    make_view,
    push_sweep,
    short_name,
)
from experiments.tracking.summary import log_sweep

STAGE_RUN = """
import sys
from pathlib import Path
from experiments.config.schema import WandbConfig
from experiments.stages.wandb_run import finish, open_run

run = open_run(
    Path(sys.argv[1]),
    config=WandbConfig(),
    mode=sys.argv[2],
    run_id="shown-real-n4-0bc03dd7-s0",
    name="fit real",
    group="shown",
    job_type="fit",
    tags=["real", "n=4", "x" * 80],
    content={"condition": "real"},
)
run.define_metric("*", step_metric="trainer/global_step")
for step in range(3):
    run.log({"trainer/global_step": step, "train/loss": 1 / (step + 1)})
assert finish(exit_code=0)
"""


def log_stage(run_dir, *, mode="offline", **environment):
    words = [sys.executable, "-c", STAGE_RUN, str(run_dir), mode]
    env = clean_environment(**environment)
    subprocess.run(words, check=True, env=env, timeout=120, capture_output=True)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Folder of a sweep that was logged offline, one of its fits too."""
    root = tmp_path_factory.mktemp("dashboard")
    sweep = finished_sweep(write_hc18_folder(root / "hc18"), root / "runs")
    folder = sweep.store.sweep_dir("shown")
    assert log_sweep(sweep, key="k", finding="Nothing.") is None
    write_plan(folder, planned(sweep.plan))
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved(sweep.config)))
    fit = next(node for node in sweep.plan.nodes.values() if node.label == "fit real")
    log_stage(sweep.store.run_dir("fit", fit.id))
    return folder


def dashboard(folder, *words, **environment):
    root = ["--root", str(folder.parent)]
    return subprocess.run(
        [sys.executable, "-m", "experiments", "dashboard", folder.name, *root, *words],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(**environment),
        timeout=300,
    )


def test_runs_are_those_of_the_stages_and_of_the_summary(shown):
    runs = find_runs(shown)
    assert sorted(run.stage for run in runs) == ["", "", "", "", "fit"]
    assert all(run.path.name.startswith("offline-") for run in runs)


def test_the_terminal_gets_names_that_differ_at_their_beginning(shown):
    view = make_view(shown, find_runs(shown))
    names = {path.name.split("-", 2)[2] for path in view.iterdir()}
    assert {"n4-real-fit-0bc03dd7-s0", "analysis"} < names
    assert [name for name in names if name.startswith("n4-synthetic-p0-s0-g0-")]
    for path in view.iterdir():
        # The name of the file must follow from that of the directory.
        file = path / f"run-{path.name.split('-', 2)[2]}.wandb"
        assert file.is_symlink()
        assert file.stat().st_size > 0
        assert (path / "files").is_dir()
    # Again, and what is gone is gone from it.
    again = make_view(shown, find_runs(shown)[:1])
    assert len(list(again.iterdir())) == 1
    assert len(find_runs(shown)) == 5, "only links were removed"


def test_of_what_is_logged_whole_each_time_the_newest_is_shown(tmp_path):
    def logged(name, stage):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.wandb").touch()
        return LoggedRun(path=tmp_path / name, stage=stage)

    runs = [
        logged("offline-run-20260102_000000-shown-analysis", ""),
        logged("run-20260101_000000-shown-analysis", ""),
        # A fit that was continued has its curve in two parts.
        logged("offline-run-20260101_000000-shown-real-n4-0bc03dd7-s0", "fit"),
        logged("offline-run-20260102_000000-shown-real-n4-0bc03dd7-s0", "fit"),
    ]
    view = make_view(tmp_path / "shown", runs)
    assert sorted(path.name for path in view.iterdir()) == [
        "run-20260101_000000-n4-real-fit-0bc03dd7-s0",
        "run-20260102_000000-analysis",
        "run-20260102_000000-n4-real-fit-0bc03dd7-s0",
    ]


def test_wandb_reads_a_run_through_its_links(shown):
    view = make_view(shown, find_runs(shown))
    (linked,) = view.glob("*-n4-real-fit-*")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(linked)]
    found = subprocess.run(
        words, capture_output=True, text=True, check=True, env=clean_environment(), timeout=120
    )
    content = json.loads(found.stdout)
    assert content["run_id"] == "shown-real-n4-0bc03dd7-s0"
    assert content["summary"]["train/loss"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("run_id", "stage", "name"),
    [
        ("my-n1-sweep-synthetic-n20-0bc03dd7-s0", "fit", "n20-synthetic-fit-0bc03dd7-s0"),
        ("other-generator-n4-5085eb05-s0", "generator", "n4-generator-5085eb05-s0"),
        ("toy-real-n8-p0-s0-g0-f1-390a6443", "", "n8-real-p0-s0-g0-f1-390a6443"),
        ("toy-unet-real-n8-p0-s0-g0-390a6443", "", "n8-unet-real-p0-s0-g0-390a6443"),
        ("toy-real-coverage-n8-p0-s0-g0-390a6443", "", "n8-real-coverage-p0-s0-g0-390a6443"),
        ("toy-mean_mask-0f04c734", "", "mean_mask-0f04c734"),
        ("toy-analysis", "", "analysis"),
        ("toy-real-n4-0bc03dd7-s0-3f9a", "fit", "n4-real-fit-0bc03dd7-s0-3f9a"),
        ("toy-analysis-3f9a", "", "analysis-3f9a"),
    ],
)
def test_short_names(run_id, stage, name):
    assert short_name(run_id, sweep="toy", stage=stage) == name


def test_mistakes_are_one_line(shown, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    console = Console(quiet=True)
    with pytest.raises(InputError, match="5 runs of W&B, but no terminal"):
        dashboard_command("shown", root=shown.parent, push=None, console=console)
    with pytest.raises(InputError, match="no such sweep; there is shown"):
        dashboard_command("show", root=shown.parent, push=None, console=console)
    for wrong in ("team", "team/", "/project", "a/b/c", "a/b:c"):
        with pytest.raises(InputError, match=f"--push {wrong}: expected ENTITY/PROJECT"):
            push_sweep(shown, runs=[], to=wrong, console=console)
    with pytest.raises(InputError, match="not logged in; run `wandb login`"):
        push_sweep(shown, runs=[], to="team/sonosweep", console=console)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"http://127.0.0.1:9 does not answer"):
        push_sweep(shown, runs=[], to="team/sonosweep", console=console)


def test_a_sweep_without_runs_says_why(shown, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "plan.json").write_text((shown / "plan.json").read_text())
    with pytest.raises(InputError, match=r"no runs of W&B; .*wandb.mode=disabled"):
        dashboard_command("bare", root=tmp_path, push=None, console=Console(quiet=True))


def test_push_syncs_every_run_once_and_makes_the_views(shown):
    with WandbServer() as server:
        ended = dashboard(shown, "--push", "team/sonosweep", **server.environment())
        assert ended.returncode == 0, ended.stdout + ended.stderr
        runs = server.runs
        assert len(runs) == 5
        assert {run["groupName"] for run in runs.values()} == {"shown"}
        assert {run["jobType"] for run in runs.values()} == {
            "fit",
            "trial",
            "reused",
            "control",
            "analysis",
        }
        fit = runs["shown-real-n4-0bc03dd7-s0"]
        assert fit["tags"] == ["real", "n=4", "x" * 64]
        history = server.history["shown-real-n4-0bc03dd7-s0"]
        assert [row["train/loss"] for row in history] == pytest.approx([1, 1 / 2, 1 / 3])
        assert [path for path in server.files if "overlays" in path]
        (workspace,) = server.sent("UpsertView2")
        (report,) = server.sent("upsertView")
        assert workspace["displayName"] == report["displayName"] == "sonosweep: shown"
        assert "workspace  http" in ended.stdout
        n_views = len(server.sent("UpsertView2"))
        n_runs = len(server.sent("UpsertBucket"))

        again = dashboard(shown, "--push", "team/sonosweep", **server.environment())
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(server.sent("UpsertBucket")) == n_runs, "synced runs are marked"
        assert len(server.sent("UpsertView2")) == n_views
        lines = [line for line in ended.stdout.splitlines() if line.startswith("report  ")]
        assert lines == [line for line in again.stdout.splitlines() if line.startswith("report  ")]
        assert server.unknown == []

        # W&B's own marks do not say where a run was sent to.
        other = dashboard(shown, "--push", "team/other", **server.environment())
        assert other.returncode == 0, other.stdout + other.stderr
        made = [said["name"] for said in server.sent("UpsertBucket") if said["project"] == "other"]
        assert set(made) == set(runs)


@pytest.fixture
def pushes(tmp_path, monkeypatch):
    """Push two runs, of stages a and b, where W&B refuses those of the given stages; what its
    command was given, and what was printed.
    """
    for name in ("a", "b"):
        path = tmp_path / f"store/fit/{name}/wandb/offline-run-20260101_000000-{name}"
        path.mkdir(parents=True)
        (path / f"run-{name}.wandb").touch()
    (tmp_path / "night").mkdir()
    found = [LoggedRun(path=p, stage="fit") for p in sorted(tmp_path.glob("store/fit/*/wandb/*"))]
    monkeypatch.setattr(tracked, "is_logged_in", lambda: True)
    monkeypatch.setattr(tracked, "server_answers", lambda: True)
    monkeypatch.setattr(tracked, "create_views", lambda *_, **__: ["views"])

    def push(to, *, refused=()):
        given = []

        def sync(*words):
            # As the real command: it marks what was taken, skips what is marked, and ends well.
            for path in map(Path, words[6:]):
                name = path.name[-1]
                if not list(path.glob("*.synced")):
                    given.append(name)
                    if name not in refused:
                        (path / f"run-{name}.wandb.synced").touch()

        monkeypatch.setattr(tracked, "_wandb", sync)
        console = Console(record=True, quiet=False, file=io.StringIO(), width=200)
        try:
            push_sweep(tmp_path / "night", runs=found, to=to, console=console)
        except InputError as error:
            return given, str(error)
        return given, console.export_text()

    return push


def test_what_a_stage_still_writes_is_pushed_when_it_has_ended(pushes, tmp_path):
    with hold(tmp_path / "store/fit/a"):
        given, printed = pushes("team/one")
    assert given == ["b"]
    assert printed.startswith("1 run of stages that are at work: not sent yet")
    assert pushes("team/one") == (["a"], "views\n")


def test_a_server_that_refuses_runs_ends_a_push_and_each_project_gets_all(pushes):
    given, told = pushes("team/one", refused=["b"])
    assert given == ["a", "b"]
    assert told.startswith("--push team/one: 1 of 2 runs not taken by https://")
    assert pushes("team/one") == (["b"], "views\n")
    assert pushes("team/two") == (["a", "b"], "views\n")
    assert pushes("team/one") == ([], "views\n")


def test_a_stage_logs_online_with_the_real_client(tmp_path):
    with WandbServer() as server:
        log_stage(tmp_path, mode="online", **server.environment())
    run = server.runs["shown-real-n4-0bc03dd7-s0"]
    assert (run["groupName"], run["jobType"], run["project"]) == ("shown", "fit", "sonosweep")
    assert json.loads(run["config"])["condition"]["value"] == "real"
    rows = server.history["shown-real-n4-0bc03dd7-s0"]
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 2]
    # Curves are drawn against the step.
    metrics = json.loads(run["config"])["_wandb"]["value"]["m"]
    assert any(metric.get("1") == "trainer/global_step" for metric in metrics)
