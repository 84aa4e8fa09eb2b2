"""`sonosweep clean`: what is listed, what is removed, and above all what is not."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from store_parts import Held, begin, fail, finish, plan_sweep, small_plan, stage, trial

from datamodules.embeddings import EmbeddingStore, write_index
from datamodules.errors import InputError
from experiments.store import clean as clean_module
from experiments.store.clean import (
    Selection,
    choose,
    clean_inventory,
    orphans,
    parse_age,
    remove,
    selection_of,
)
from experiments.store.clean_view import size
from experiments.store.guard import claim_store, use_store, use_sweep
from experiments.store.inventory import take_inventory
from experiments.store.plan_file import PlanFile
from experiments.store.runs import hold

ROOT = Path(__file__).parents[3]
DAY_S = 86400.0


def plan_of(*keys: str) -> PlanFile:
    stages = tuple(stage(key) for key in keys)
    return PlanFile(stages=stages, trials=(trial("real", 4, keys[0]),))


def embed(root: Path, key: str, *keys: str) -> None:
    """A finished stage that embedded some images; a key with `v` is a view."""
    store = EmbeddingStore(root / "store" / "embeddings")
    run_dir = begin(root, key)
    for each in keys:
        store.write(each, np.zeros((1, 2, 2)))
        if each.startswith("v"):
            store.write_view(each, image=np.zeros((2, 2), np.uint8), mask=np.zeros((2, 2)))
    write_index(run_dir, {f"{each}_HC": [each] for each in keys})
    finish(root, key)


@pytest.fixture
def root(tmp_path):
    """Two sweeps that share `fit/ab` and `embed/ab`, and orphans of every kind."""
    root = tmp_path / "runs"
    plan_sweep(root, "a", plan_of("fit/ab", "fit/a", "score/a", "embed/ab", "embed/a"))
    plan_sweep(root, "b", plan_of("fit/ab", "fit/b", "embed/ab"))
    claim_store(root)
    finish(root, "fit/ab", "fit/a", "score/a", "fit/b", "fit/old", size=1000)
    embed(root, "embed/ab", "00shared", "v0view")
    embed(root, "embed/a", "00shared", "00only-a")
    embed(root, "embed/old", "00shared", "v0old")
    EmbeddingStore(root / "store" / "embeddings").write("ff-nobody", np.zeros((1, 2, 2)))
    prepared = root / "store" / "prepared" / "prepared-0123"
    prepared.mkdir(parents=True)
    (prepared / "images.npy").write_bytes(bytes(5000))
    return root


def files(root: Path) -> set[str]:
    """All files below the store, but the locks."""
    store = root / "store"
    return {
        path.relative_to(store).as_posix()
        for path in store.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def gone(root: Path, selection: Selection) -> set[str]:
    """What a removal takes from the store: directories of stages, or single files."""
    before = files(root)
    remove(root, selection)
    assert files(root) <= before, "a removal adds nothing"
    return {
        name if name.startswith(("embeddings", "prepared")) else "/".join(name.split("/")[:2])
        for name in before - files(root)
    }


def outside(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for folder in ("a", "b")
        for path in (root / folder).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def keys_of(root: Path, **state: str) -> set[str]:
    found = take_inventory(root).artefacts
    return {each.key for each in found if all(getattr(each, k) == v for k, v in state.items())}


def test_an_inventory_counts_bytes_and_finds_who_refers(root):
    found = {each.key: each for each in take_inventory(root).artefacts}
    assert found["fit/ab"].sweeps == {"a", "b"}
    assert found["fit/old"].sweeps == frozenset()
    run_dir = root / "store" / "fit" / "a"
    expected = sum(path.stat().st_size for path in run_dir.iterdir())
    assert found["fit/a"].n_bytes == expected > 1000
    assert found["prepared/prepared-0123"].n_bytes == 5000
    assert found["embeddings/00shared"].users == {"embed/ab", "embed/a", "embed/old"}
    assert found["embeddings/00shared"].sweeps == {"a", "b"}
    view = found["embeddings/v0view"]
    assert [path.name for path in view.paths] == ["v0view.npy", "v0view.view.npy"]
    assert found["embeddings/ff-nobody"].users == frozenset()
    assert {each.stage for each in found.values()} == {
        *("fit", "score", "embed", "embeddings", "prepared"),
    }


def test_a_store_that_is_missing_or_empty_holds_nothing(tmp_path):
    assert take_inventory(tmp_path / "none").artefacts == ()
    with pytest.raises(InputError, match="holds no store; give --root"):
        clean_inventory(tmp_path)
    claim_store(tmp_path)
    assert clean_inventory(tmp_path).artefacts == ()
    assert remove(tmp_path, Selection(orphans=True)).removed == ()


def test_links_are_neither_followed_nor_removed(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "big").write_bytes(bytes(10**6))
    (root / "store" / "fit" / "linked").symlink_to(elsewhere)
    (root / "store" / "linked_stage").symlink_to(elsewhere)
    (root / "store" / "fit" / "old" / "inside").symlink_to(elsewhere)
    found = {each.key: each for each in take_inventory(root).artefacts}
    assert "fit/linked" not in found
    assert found["fit/old"].n_bytes < 10**5
    remove(root, Selection(orphans=True))
    assert not (root / "store" / "fit" / "old").exists()
    assert (root / "store" / "fit" / "linked").is_symlink()
    assert (elsewhere / "big").stat().st_size == 10**6


def test_orphans_go_and_nothing_else(root):
    before = outside(root)
    assert {each.key for each in orphans(take_inventory(root))} == {
        *("fit/old", "embed/old", "embeddings/v0old", "embeddings/ff-nobody"),
    }
    assert gone(root, Selection(orphans=True)) == {
        "fit/old",
        "embed/old",
        "embeddings/v0/v0old.npy",
        "embeddings/v0/v0old.view.npy",
        "embeddings/ff/ff-nobody.npy",
    }
    assert outside(root) == before
    assert gone(root, Selection(orphans=True)) == set()


def test_a_named_sweep_loses_what_is_its_alone(root):
    before = outside(root)
    assert gone(root, Selection(sweeps=("a",))) == {
        *("fit/a", "score/a", "embed/a", "embeddings/00/00only-a.npy"),
    }
    assert outside(root) == before, "tables and reports stay"


def test_two_named_sweeps_lose_what_they_share(root):
    # `00shared` is in an orphan's index too, which was not asked for.
    assert gone(root, Selection(sweeps=("a", "b"))) == {
        *("fit/ab", "fit/a", "fit/b", "score/a", "embed/ab", "embed/a"),
        *("embeddings/00/00only-a.npy", "embeddings/v0/v0view.npy"),
        "embeddings/v0/v0view.view.npy",
    }
    assert gone(root, Selection(orphans=True)) == {
        *("fit/old", "embed/old", "embeddings/00/00shared.npy", "embeddings/v0/v0old.npy"),
        *("embeddings/v0/v0old.view.npy", "embeddings/ff/ff-nobody.npy"),
    }
    assert {name.split("/")[0] for name in files(root)} == {"prepared", "VERSION.json"}


def test_a_stage_narrows(root):
    assert gone(root, Selection(sweeps=("a",), stages=("score",))) == {"score/a"}
    assert gone(root, Selection(orphans=True, stages=("fit",))) == {"fit/old"}


def test_a_stage_alone_spares_what_sweeps_refer_to(root):
    choice = choose(take_inventory(root), Selection(stages=("fit",)), now=time.time())
    assert [each.key for each in choice.chosen] == ["fit/old"]
    assert {(each.key, why) for each, why in choice.kept} == {
        ("fit/a", "sweep a refers to it"),
        ("fit/ab", "sweep a, b refers to it"),
        ("fit/b", "sweep b refers to it"),
    }


def test_embeddings_stay_as_long_as_an_index_names_them(root):
    # The orphan's own index still stands, so its files do.
    assert gone(root, Selection(stages=("embeddings",))) == {"embeddings/ff/ff-nobody.npy"}


def test_prepared_images_go_only_when_they_are_named(root):
    assert gone(root, Selection(older_than_s=0.0)) == {
        *("fit/old", "embed/old", "embeddings/v0/v0old.npy", "embeddings/v0/v0old.view.npy"),
        "embeddings/ff/ff-nobody.npy",
    }
    assert gone(root, Selection(stages=("prepared",))) == {
        "prepared/prepared-0123/images.npy",
    }
    assert not (root / "store" / "prepared" / "prepared-0123").exists()


def test_age_is_that_of_the_last_use(root):
    then = time.time() - 40 * DAY_S
    for path in [*(root / "store").rglob("*"), root / "b" / "plan.json"]:
        os.utime(path, (then, then))
    found = {each.key: each for each in take_inventory(root).artefacts}
    assert found["fit/old"].last_use == pytest.approx(then)
    assert found["fit/b"].last_use == pytest.approx(then)
    assert found["fit/ab"].last_use == pytest.approx(time.time(), abs=600), "a was started today"
    assert found["embeddings/00shared"].last_use == pytest.approx(time.time(), abs=600)
    (root / "store" / "fit" / "old" / "new").touch()
    assert gone(root, Selection(orphans=True, older_than_s=30 * DAY_S)) == {
        *("embed/old", "embeddings/v0/v0old.npy", "embeddings/v0/v0old.view.npy"),
        "embeddings/ff/ff-nobody.npy",
    }
    assert gone(root, Selection(orphans=True, older_than_s=50 * DAY_S)) == set()
    assert gone(root, Selection(sweeps=("b",), older_than_s=30 * DAY_S)) == {"fit/b"}


def test_what_is_held_stays(root):
    with Held(root / "store" / "fit" / "old"):
        assert keys_of(root, state="held") == {"fit/old"}
        done = remove(root, Selection(orphans=True))
        kept = {each.key: why for each, why in done.kept}
        assert kept["fit/old"] == "in use"
        # A stage that runs may be about to use any shared file.
        assert kept["embeddings/v0old"] == "a sweep runs on this store"
        assert [each.key for each in done.removed] == ["embed/old"]
    assert gone(root, Selection(orphans=True)) == {
        *("fit/old", "embeddings/v0/v0old.npy", "embeddings/v0/v0old.view.npy"),
        "embeddings/ff/ff-nobody.npy",
    }


def test_what_is_taken_while_it_is_decided_stays(root, monkeypatch):
    held = []

    def choose_late(*args, **kwargs):
        choice = choose(*args, **kwargs)
        held.append(Held(root / "store" / "embed" / "old"))
        shutil.rmtree(root / "store" / "fit" / "old")
        return choice

    monkeypatch.setattr(clean_module, "choose", choose_late)
    done = remove(root, Selection(orphans=True))
    kept = {each.key: why for each, why in done.kept}
    assert kept["embed/old"] == "in use"
    assert kept["embeddings/v0old"] == "embed/old uses it"
    assert "fit/old" in kept
    assert (root / "store" / "embeddings" / "v0" / "v0old.npy").is_file()
    held[0].__exit__()


def test_a_running_sweep_keeps_its_caches_and_may_not_be_named(root):
    with use_sweep(root / "b"):
        with pytest.raises(InputError, match="--sweep b: it runs now; stop it first"):
            remove(root, Selection(sweeps=("b",)))
        assert gone(root, Selection(stages=("prepared",))) == set()
        assert gone(root, Selection(orphans=True)) == {"fit/old", "embed/old"}
    with Held(root / "store" / "fit" / "b"), pytest.raises(InputError, match="stages run now"):
        remove(root, Selection(sweeps=("b",)))


def test_nothing_goes_while_trials_of_no_sweep_run(root):
    before = files(root)
    with use_store(root), pytest.raises(InputError, match="trials run that no plan names"):
        remove(root, Selection(orphans=True))
    assert files(root) - {".trials"} == before
    assert "fit/old" in gone(root, Selection(orphans=True))


def test_an_unfinished_stage_may_own_embeddings_without_a_name(root):
    begin(root, "embed/late")
    plan_sweep(root, "c", plan_of("fit/c", "embed/late"))
    assert "embeddings/ff-nobody" not in {each.key for each in orphans(take_inventory(root))}
    done = remove(root, Selection(orphans=True))
    assert {each.key: why for each, why in done.kept} == {
        "embeddings/ff-nobody": "embed/late is not finished and may use it"
    }
    # Its own sweep was named: now it is nobody's.
    assert gone(root, Selection(orphans=True, sweeps=("c",))) == {
        "embed/late",
        "embeddings/ff/ff-nobody.npy",
    }


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 3}', '{"a": [["x"]]}'])
def test_an_index_that_cannot_be_read_keeps_everything_without_a_name(root, text):
    (root / "store" / "embed" / "ab" / "embeddings.json").write_text(text)
    done = remove(root, Selection(orphans=True))
    kept = {each.key for each, _ in done.kept}
    assert {"embeddings/v0view", "embeddings/ff-nobody"} <= kept


def test_interrupted_and_failed_stages_are_kept_for_their_sweep(root):
    plan_sweep(root, "c", plan_of("fit/c", "fit/c2"))
    begin(root, "fit/c")
    fail(root, "fit/c2", "ValueError: no")
    fail(root, "fit/lost", "ValueError: no")
    assert keys_of(root, state="unfinished") == {"fit/c", "fit/c2", "fit/lost"}
    assert gone(root, Selection(orphans=True, stages=("fit",))) == {"fit/old", "fit/lost"}


def test_temporary_files_of_killed_writers_are_orphans(root):
    store = root / "store"
    (store / "embeddings" / "00" / ".00x.npy.abc").write_bytes(bytes(10))
    (store / "prepared" / ".prepared-9.abc").mkdir()
    (store / "prepared" / ".prepared-9.abc" / "images.npy").write_bytes(bytes(10))
    assert keys_of(root, stage="temporary") == {
        *("temporary/.00x.npy.abc", "temporary/.prepared-9.abc"),
    }
    assert gone(root, Selection(stages=("temporary",))) == {
        *("embeddings/00/.00x.npy.abc", "prepared/.prepared-9.abc/images.npy"),
    }


def test_nothing_selected_is_nothing_removed(root):
    assert Selection().is_empty
    assert gone(root, Selection()) == set()


@pytest.mark.parametrize("damage", ["missing", "{", '{"layout": 1}'])
def test_a_sweep_of_which_nothing_is_known_stops_every_removal(root, damage):
    path = root / "b" / "plan.json"
    path.unlink()
    if damage != "missing":
        path.write_text(damage)
    before = files(root)
    for selection in (Selection(orphans=True), Selection(sweeps=("a",)), Selection(sweeps=("b",))):
        with pytest.raises(InputError, match=r"runs/b: has no readable plan.json, .*report"):
            remove(root, selection)
    assert files(root) == before
    # Without its folder it is no sweep any more, and what it made is nobody's.
    shutil.rmtree(root / "b")
    assert "fit/b" in gone(root, Selection(orphans=True))


def test_a_newer_plan_stops_everything(root):
    (root / "b" / "plan.json").write_text(json.dumps({"layout": 2}))
    with pytest.raises(InputError, match="newer"):
        remove(root, Selection(orphans=True))


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(sweeps=("c",)), "--sweep c: no such sweep in .*; known: a, b"),
        (Selection(stages=("fits",)), "--stage fits: the store holds none; it holds embed, "),
    ],
)
def test_an_unknown_word_is_refused(root, selection, words):
    with pytest.raises(InputError, match=words):
        remove(root, selection)


def test_a_stage_that_waited_for_a_removal_begins_in_a_new_directory(root):
    run_dir = root / "store" / "fit" / "old"
    entered = threading.Event()

    def begin_late() -> None:
        with hold(run_dir, on_wait=waits.set):
            (run_dir / "new").touch()
            entered.set()

    waits = threading.Event()
    with hold(run_dir):
        waiting = threading.Thread(target=begin_late)
        waiting.start()
        assert waits.wait(10)
        run_dir.rename(root / "store" / ".removed-fit-old-1")
        assert not entered.is_set()
    waiting.join(10)
    assert entered.is_set()
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "new"]
    assert not (root / "store" / ".removed-fit-old-1" / "new").exists()


def test_an_interrupted_removal_leaves_nothing_to_believe_in(root, monkeypatch):
    def stop(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            remove(root, Selection(orphans=True, stages=("fit",)))
    assert not (root / "store" / "fit" / "old").exists()
    inventory = take_inventory(root)
    (half,) = inventory.half_removed
    assert (half / "DONE.json").is_file()
    assert {each.key for each in inventory.artefacts if each.stage == "fit"} == {
        *("fit/ab", "fit/a", "fit/b"),
    }
    assert remove(root, Selection(orphans=True, stages=("embed",))).left == ()
    assert take_inventory(root).half_removed == ()


def test_what_may_not_be_renamed_is_one_line(root, monkeypatch):
    def refuse(self, target):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"fit/old: cannot be removed \(Read-only file system\)"):
        remove(root, Selection(orphans=True, stages=("fit",)))


def test_a_start_waits_until_it_is_decided(root):
    """Whoever holds the store, as a starting sweep does, is waited for."""
    started = []
    with hold(root / "store"):
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments", "clean", "--orphans", "--yes", "--root", root],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        # The sweep that is starting refers to it from now on.
        started.append(plan_sweep(root, "c", plan_of("fit/old")))
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert (root / "store" / "fit" / "old" / "DONE.json").is_file()
    assert "removed 1 embed, 2 embeddings" in printed


def command(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments", "clean", "--root", str(root), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "60"},
        cwd=ROOT,
        check=False,
    )


def test_the_list_is_read_at_60_columns_and_removes_nothing(root):
    before = files(root)
    begin(root, "fit/lost")
    for words in ((), ("--yes",)):
        ended = command(root, *words)
        assert ended.returncode == 0, ended.stderr
        rows = [line.split() for line in ended.stdout.splitlines()]
        (prepared,) = [row for row in rows if row[:1] == ["prepared"]]
        assert prepared[:5] == ["prepared", "1", "5.0", "kB", "?"]
        (fit,) = [row for row in rows if row[:1] == ["fit"]]
        assert (fit[1], fit[4]) == ("5", "2")
        assert "interrupted or failed: 1 fit" in ended.stdout
        assert all(len(line) <= 60 for line in ended.stdout.splitlines())
    assert "nothing was removed: say what" in ended.stdout
    assert files(root) >= before


def test_a_selection_is_shown_before_it_is_removed(root):
    before = files(root)
    ended = command(root, "--orphans", "--stage", "fit")
    assert "  fit/old  1.0 kB" in ended.stdout
    assert "would remove 1 fit (1.0 kB); add --yes to do it" in ended.stdout
    assert files(root) == before
    ended = command(root, "--orphans", "--stage", "fit", "--yes")
    assert ended.returncode == 0, ended.stderr
    assert "removed 1 fit (1.0 kB)" in ended.stdout
    ended = command(root, "--stage", "fit", "--older-than", "0d")
    assert "would remove nothing\n" in ended.stdout
    assert "kept 1 fit (1.0 kB): sweep a, b refers to it" in ended.stdout


def test_bad_words_end_with_one_line(root):
    for words in (("--older-than", "soon"), ("--sweep", "zz"), ("--stage", "zz", "--yes")):
        ended = command(root, *words)
        assert ended.returncode == 2
        assert ended.stderr.startswith(f"error: {words[0]} {words[1]}: ")
        assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("0d", 0.0), ("12h", 43200.0), ("30d", 2592000.0), ("2w", 1209600.0)]
)
def test_ages(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "30 d", "9999999d"])
def test_ages_that_are_none(text):
    with pytest.raises(InputError, match="write a number and h, d or w, as 30d"):
        parse_age(text)


def test_no_words_are_no_selection():
    chosen = selection_of(orphans=False, stages=[], sweeps=[], older_than=None)
    assert chosen.is_empty
    assert not selection_of(orphans=False, stages=[], sweeps=[], older_than="0d").is_empty


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345, "12 kB"),
        (1.2e6, "1.2 MB"),
        (3.5e16, "35000 TB"),
    ],
)
def test_sizes(n_bytes, text):
    assert size(n_bytes) == text


def test_the_small_plan_of_the_status_tests_is_whole_here_too(tmp_path):
    plan_sweep(tmp_path, "night", small_plan())
    finish(tmp_path, *(each.key for each in small_plan().stages))
    assert gone(tmp_path, Selection(orphans=True)) == set()
