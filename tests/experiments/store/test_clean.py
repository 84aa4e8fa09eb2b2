"""`sonosweep clean`: what is listed, what is removed, and above all what is not."""

import contextlib
import json
import os
import shutil
import threading
import time
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from store_parts import Held, begin, fail, finish, plan_sweep, run_command, stage, trial

from datamodules.embeddings import EmbeddingStore, write_index
from datamodules.errors import InputError
from experiments.plan.stage_table import STAGES
from experiments.store import clean as clean_module
from experiments.store.clean import Selection, clean_inventory, orphans, parse_age, remove
from experiments.store.guard import claim_store, use_store, use_sweep
from experiments.store.inventory import take_inventory
from experiments.store.plan_file import PlanFile
from experiments.store.runs import STAGE_NAMES, hold
from experiments.store.screen import format_bytes

DAY_S = 86400.0
OLD_VIEW = {"embeddings/v0/v0old.npy", "embeddings/v0/v0old.view.npy"}
NOBODYS = "embeddings/ff/ff-nobody.npy"
ORPHANS = {"fit/old", "embed/old", NOBODYS, *OLD_VIEW}


def plan_of(*keys: str) -> PlanFile:
    return PlanFile(stages=tuple(map(stage, keys)), trials=(trial("real", 4, keys[0]),))


def embed(root: Path, key: str, *names: str) -> None:
    """A finished stage that embedded some images; a name with `v` is a view's."""
    store = EmbeddingStore(root / "store" / "embeddings")
    for name in names:
        store.write(name, np.zeros((1, 2, 2)))
        if name.startswith("v"):
            store.write_view(name, image=np.zeros((2, 2), np.uint8), mask=np.zeros((2, 2)))
    write_index(begin(root, key), {f"{name}_HC": [name] for name in names})
    finish(root, key)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two sweeps that share `fit/ab` and `embed/ab`, and orphans of every kind."""
    root = tmp_path_factory.mktemp("made") / "runs"
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


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs")


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but the locks."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def gone(root: Path, **selection) -> set[str]:
    """What a removal takes from the store: directories of stages, or single files."""
    before = files(root)
    remove(root, Selection(**selection))
    after = files(root)
    assert after.items() <= before.items(), "a removal adds and changes nothing"
    taken = [name.removeprefix("store/") for name in before if name not in after]
    shared = ("embeddings", "prepared")
    return {n if n.startswith(shared) else "/".join(n.split("/")[:2]) for n in taken}


def reasons(root: Path, **selection) -> dict[str, str]:
    """What a removal was asked for and kept, and why."""
    return {each.key: why for each, why in remove(root, Selection(**selection)).kept}


def keys_of(root: Path, **what: str) -> set[str]:
    """Artefacts of a stage or in a state."""
    ((name, value),) = what.items()
    return {each.key for each in take_inventory(root).artefacts if getattr(each, name) == value}


def used(root: Path, *sweeps: str, days_ago: float) -> None:
    """Let everything in the store, and some sweeps, be used last some days ago."""
    then = time.time() - days_ago * DAY_S
    for path in [*(root / "store").rglob("*"), *(root / name / "plan.json" for name in sweeps)]:
        os.utime(path, (then, then))


def test_a_store_that_is_missing_or_empty_holds_nothing(tmp_path):
    with pytest.raises(InputError, match="holds no store; give --root"):
        clean_inventory(tmp_path)
    claim_store(tmp_path)
    assert clean_inventory(tmp_path).artefacts == ()


def test_links_are_neither_followed_nor_removed(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "big").write_bytes(bytes(10**6))
    for name in ("fit/linked", "linked_stage", "fit/old/inside"):
        (root / "store" / name).symlink_to(elsewhere)
    inventory = take_inventory(root)
    assert inventory.foreign == ()
    assert sum(each.n_bytes for each in inventory.artefacts) < 10**5
    assert "fit/old" in gone(root, orphans=True)
    assert (root / "store" / "fit" / "linked" / "big").stat().st_size == 10**6


def test_what_the_program_did_not_make_stays(root, monkeypatch, capsys):
    store = root / "store"
    mine = [
        store / name / "text" for name in ("notes/mine", "fit/copies", "fit/0123", "index/more")
    ]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    # Stopped before it had a manifest; of an earlier version; of an extension.
    old = [store / name for name in ("fit/0123456789abcdef", "fit_unet/u", "theirs/t")]
    with hold(old[0]):
        pass
    finish(root, "fit_unet/u", "theirs/t")
    (old[2] / "manifest.json").write_text('{"stage": "theirs"}')
    for more in ((), ("--orphans",), ("--orphans", "--yes")):
        _, out, _ = run_command(monkeypatch, capsys, "clean", "--root", root, *more)
        assert "not ours, left alone: store/fit/0123, store/fit/copies, store/notes\n" in out
    assert all(path.is_file() for path in mine)
    assert not any(path.exists() for path in old)


def test_every_stage_is_known_to_the_store():
    assert set(STAGES) | {"fit_unet"} == STAGE_NAMES


def test_what_results_name_stays(root):
    """With what went into it, where the plan names it no more, or went with the recipe."""
    finish(root, "score/old")
    for key, text in (("score/old", "fit/old"), ("fit/old", "embed/old")):
        path = root / "store" / key / "manifest.json"
        path.write_text(json.dumps({"upstream": {"input": text, "bad": 7}}))
    (root / "b" / "results.csv").write_text("fit_id,score_id\n,score/old\n,\n")
    assert gone(root, orphans=True) == {NOBODYS}
    (root / "c").mkdir()
    (root / "b" / "results.csv").rename(root / "c" / "results.csv")
    assert gone(root, orphans=True) == set()
    (root / "c" / "results.csv").write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"c/results.csv: cannot be read .* move it away"):
        remove(root, Selection(orphans=True))
    (root / "c" / "results.csv").unlink()
    expected = {"score/old", "fit/old", "embed/old", *OLD_VIEW}
    assert gone(root, orphans=True) == expected


OF_A = {"fit/a", "score/a", "embed/a", "embeddings/00/00only-a.npy"}
VIEW = {"embeddings/v0/v0view.npy", "embeddings/v0/v0view.view.npy"}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"sweeps": ("a",)}, OF_A),
        # `00shared` is in an orphan's index too, which was not asked for.
        ({"sweeps": ("a", "b")}, {*OF_A, *VIEW, "fit/ab", "fit/b", "embed/ab"}),
        ({"sweeps": ("a",), "stages": ("score",)}, {"score/a"}),
        # The orphan's own index still stands, so its files do.
        ({"stages": ("embeddings",)}, {NOBODYS}),
        # Prepared images go only when they are named.
        ({"older_than_s": 0.0}, ORPHANS),
        ({"stages": ("prepared",)}, {"prepared/prepared-0123/images.npy"}),
    ],
)
def test_what_is_selected_goes_and_nothing_else(root, selection, expected):
    assert gone(root, **selection) == expected


def test_age_is_that_of_the_last_use(root):
    used(root, "b", days_ago=40)
    # What `a` refers to was used today, when `a` was started.
    assert gone(root, sweeps=("a",), older_than_s=30 * DAY_S) == set()
    (root / "store" / "fit" / "old" / "new").touch()
    assert gone(root, orphans=True, older_than_s=30 * DAY_S) == ORPHANS - {"fit/old"}
    assert gone(root, orphans=True, older_than_s=50 * DAY_S) == set()
    assert gone(root, sweeps=("b",), older_than_s=30 * DAY_S) == {"fit/b"}


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (lambda root: Held(root / "store" / "fit" / "old"), {"fit/old": "in use"}),
        (lambda root: use_sweep(root / "b"), {}),
    ],
)
def test_what_may_be_in_use_stays(root, state, kept):
    """A stage or a sweep that runs may be about to use any shared file."""
    shared = dict.fromkeys(
        ("embeddings/v0old", "embeddings/ff-nobody"), "a sweep runs on this store"
    )
    with state(root):
        assert keys_of(root, state="held") == set(kept)
        assert reasons(root, orphans=True) == kept | shared
    assert gone(root, orphans=True) == {*kept, NOBODYS, *OLD_VIEW}


def test_an_unfinished_stage_may_own_what_no_index_names(root):
    begin(root, "embed/late")
    plan_sweep(root, "c", plan_of("fit/c", "embed/late"))
    assert "embeddings/ff-nobody" not in {each.key for each in orphans(take_inventory(root))}
    why = "embed/late is not finished and may use it"
    assert reasons(root, orphans=True) == {"embeddings/ff-nobody": why}
    # Once its own sweep is named, the embedding is nobody's.
    assert gone(root, orphans=True, sweeps=("c",)) == {"embed/late", NOBODYS}


UNKNOWN = "b: has no readable plan.json, .*report"
OUTSIDE = json.dumps({"layout": 1, "nodes": [asdict(stage("../b"))], "trials": []})


@pytest.mark.parametrize(
    ("state", "plan", "said"),
    [
        (lambda root: use_sweep(root / "b"), None, "b: it runs now; stop it first"),
        (lambda root: Held(root / "store/fit/b"), None, "b: some of its stages run now"),
        (use_store, None, "trials run that no plan names"),
        (contextlib.nullcontext, "{", UNKNOWN),
        (contextlib.nullcontext, OUTSIDE, UNKNOWN),
        (contextlib.nullcontext, '{"layout": 2}', "newer"),
    ],
)
def test_nothing_goes_while_it_is_not_known_what_is_in_use(root, state, plan, said):
    if plan is not None:
        (root / "b" / "plan.json").write_text(plan)
    with state(root), pytest.raises(InputError, match=said):
        remove(root, Selection(sweeps=("b",)))


def test_what_is_taken_while_it_is_decided_stays(root, monkeypatch):
    def look_early(*args):
        inventory = take_inventory(*args)
        held.append(Held(root / "store" / "embed" / "old"))
        shutil.rmtree(root / "store" / "fit" / "old")
        return inventory

    held: list[Held] = []
    monkeypatch.setattr(clean_module, "take_inventory", look_early)
    assert reasons(root, orphans=True) == {
        "embed/old": "in use",
        "embeddings/v0old": "embed/old uses it",
        "fit/old": "another process removed it",
    }
    assert (root / "store" / "embeddings" / "v0" / "v0old.npy").is_file()
    held[0].__exit__()


def test_an_index_that_cannot_be_read_keeps_everything_without_a_name(root):
    for text in ("", '{"a": [["x"]]}'):
        (root / "store" / "embed" / "ab" / "embeddings.json").write_text(text)
        assert {"embeddings/v0view", "embeddings/ff-nobody"} <= set(reasons(root, orphans=True))


def test_unfinished_stages_stay_with_their_sweep(root):
    plan_sweep(root, "c", plan_of("fit/c", "fit/c2"))
    begin(root, "fit/c")
    fail(root, "fit/c2", "ValueError: no")
    fail(root, "fit/lost", "ValueError: no")
    assert keys_of(root, state="unfinished") == {"fit/c", "fit/c2", "fit/lost"}
    assert gone(root, orphans=True, stages=("fit",)) == {"fit/old", "fit/lost"}


def test_temporary_files_are_nobodys(root):
    left = {"embeddings/00/.00x.npy.abc", "prepared/.prepared-9.abc/images.npy"}
    for name in left:
        (root / "store" / name).parent.mkdir(exist_ok=True)
        (root / "store" / name).write_bytes(bytes(10))
    assert gone(root, stages=("temporary",)) == left


def test_a_stage_that_waited_for_a_removal_begins_in_a_new_directory(root):
    run_dir, aside = root / "store" / "fit" / "old", root / "store" / ".removed-fit-old-1"
    waits = threading.Event()

    def begin_late() -> None:
        with hold(run_dir, on_wait=waits.set):
            (run_dir / "new").touch()

    waiting = threading.Thread(target=begin_late)
    with hold(run_dir):
        waiting.start()
        assert waits.wait(10)
        run_dir.rename(aside)
    waiting.join(10)
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "new"]
    assert not (aside / "new").exists()


def test_an_interrupted_removal_leaves_no_stage_that_looks_complete(root):
    stop = mock.patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt):
        remove(root, Selection(orphans=True, stages=("fit",)))
    assert not (root / "store" / "fit" / "old").exists()
    (half,) = take_inventory(root).half_removed
    assert (half / "DONE.json").is_file()
    assert keys_of(root, stage="fit") == {"fit/ab", "fit/a", "fit/b"}
    assert remove(root, Selection(orphans=True, stages=("embed",))).left == ()
    assert take_inventory(root).half_removed == ()


def test_what_may_not_be_renamed_is_one_line(root):
    refusal = OSError(30, "Read-only file system", str(root / "store" / "fit" / "old"))
    said = r"fit/old: cannot be removed \(Read-only file system\)"
    with (
        mock.patch.object(Path, "rename", side_effect=refusal),
        pytest.raises(InputError, match=said),
    ):
        remove(root, Selection(orphans=True, stages=("fit",)))


def test_a_start_waits_until_it_is_decided(root, monkeypatch):
    """Whoever holds the store, as a starting sweep does, is waited for."""
    waits, outcomes = threading.Event(), []
    monkeypatch.setattr(clean_module, "hold", lambda store: hold(store, on_wait=waits.set))
    waiting = threading.Thread(
        target=lambda: outcomes.append(remove(root, Selection(orphans=True)))
    )
    with hold(root / "store"):
        waiting.start()
        assert waits.wait(10)
        # The sweep that is starting refers to it from now on.
        plan_sweep(root, "c", plan_of("fit/old"))
    waiting.join(10)
    removed = {each.key for each in outcomes[0].removed}
    assert removed == {"embed/old", "embeddings/v0old", "embeddings/ff-nobody"}


def test_a_selection_is_shown_before_it_is_removed(root, monkeypatch, capsys):
    def clean(*words):
        return run_command(monkeypatch, capsys, "clean", "--root", root, *words)

    used(root, "a", "b", days_ago=40)
    before, fits = files(root), ("--orphans", "--stage", "fit")
    code, out, _ = clean()
    assert (code, "fit             4  5.4 kB        1  40 d ago" in out) == (0, True)
    assert "nothing was removed: say what" in clean("--yes")[1]
    said = "would remove nothing\nkept 1 score (1.3 kB): sweep a refers to it\n"
    assert clean("--stage", "score", "--older-than", "0d") == (0, said, "")
    said = "  fit/old  1.3 kB\nwould remove 1 fit (1.3 kB); add --yes to do it\n"
    assert clean(*fits) == (0, said, "")
    assert files(root) == before
    assert clean(*fits, "--yes") == (0, "removed 1 fit (1.3 kB)\n", "")
    assert files(root) != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--older-than soon", "write a number and h, d or w, as 30d"),
        ("--sweep c", "no such sweep in {root}; known: a, b"),
        ("--stage fits", "the store holds none; it holds embed, embeddings, fit, prepared, score"),
    ],
)
def test_bad_words_end_with_one_line(root, monkeypatch, capsys, words, said):
    given = words.split()
    code, out, err = run_command(monkeypatch, capsys, "clean", "--root", root, *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {' '.join(given[:2])}: {said.format(root=root)}")


def test_ages_and_sizes():
    assert [parse_age(text) for text in ("0d", "12h", "30d", "2w")] == [0, 43200, 2592000, 1209600]
    for text in ("30", "-1d", "1.5d"):
        with pytest.raises(InputError, match="write a number and h, d or w, as 30d"):
            parse_age(text)
    texts = {999: "999 B", 1000: "1.0 kB", 12_345: "12 kB", 3.5e16: "35000 TB"}
    assert {n_bytes: format_bytes(n_bytes) for n_bytes in texts} == texts
