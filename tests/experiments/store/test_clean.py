"""`sonosweep clean`: what is listed, what is removed, and above all what is not."""

import json
import os
import shutil
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from store_parts import Held, begin, fail, finish, plan_sweep, run_command, stage, trial

from datamodules.embeddings import EmbeddingStore, write_index
from datamodules.errors import InputError
from experiments.store import clean as clean_module
from experiments.store.clean import Selection, parse_age, remove
from experiments.store.guard import claim_store, use_store, use_sweep
from experiments.store.inventory import take_inventory
from experiments.store.plan_file import PlanFile
from experiments.store.runs import hold

DAY_S = 86400.0
OLD_VIEW = {"embeddings/v0/v0old.npy", "embeddings/v0/v0old.view.npy"}
NOBODYS = "embeddings/ff/ff-nobody.npy"
ORPHANS = {"fit/old", "embed/old", NOBODYS, *OLD_VIEW}
OF_A = {"fit/a", "score/a", "embed/a", "embeddings/00/00only-a.npy"}
VIEW = {"embeddings/v0/v0view.npy", "embeddings/v0/v0view.view.npy"}


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


def used(root: Path, *sweeps: str, days_ago: float) -> None:
    """Let everything in the store, and some sweeps, be used last some days ago."""
    then = time.time() - days_ago * DAY_S
    for path in [*(root / "store").rglob("*"), *(root / name / "plan.json" for name in sweeps)]:
        os.utime(path, (then, then))


def test_a_store_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    said = f"error: {tmp_path}: holds no store; give --root, the store.root of your sweeps\n"
    assert run_command(monkeypatch, capsys, "clean", "--root", tmp_path) == (2, "", said)


def test_what_the_program_did_not_make_stays(root, tmp_path, monkeypatch, capsys):
    """Nor are links followed, counted or removed."""
    store, linked = root / "store", tmp_path / "linked"
    folders = ("notes/mine", "fit/copies", "fit/0123", "index/more", linked)
    mine = [store / folder / "text" for folder in folders]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(10**6))
    for name in ("fit/linked", "linked_stage", "fit/old/inside"):
        (store / name).symlink_to(linked)
    # Stopped before it had a manifest; of an earlier version; of an extension; with a link in it.
    old = [store / name for name in ("fit/0123456789abcdef", "fit_unet/u", "theirs/t", "fit/old")]
    with hold(old[0]):
        pass
    finish(root, "fit_unet/u", "theirs/t")
    assert sum(each.n_bytes for each in take_inventory(root).artefacts) < 10**5
    for more in ((), ("--orphans",), ("--orphans", "--yes")):
        _, out, _ = run_command(monkeypatch, capsys, "clean", "--root", root, *more)
        assert "not ours, left alone: store/fit/0123, store/fit/copies, store/notes\n" in out
    assert all(path.is_file() for path in [*mine, store / "fit" / "linked" / "text"])
    assert not any(path.exists() for path in old)


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


def test_a_sweep_whose_folder_is_a_link_keeps_what_it_refers_to(root, tmp_path):
    (root / "a").rename(tmp_path / "moved")
    (root / "a").symlink_to(tmp_path / "moved")
    assert gone(root, orphans=True) == ORPHANS
    assert gone(root, sweeps=("a",)) == OF_A


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


def test_what_may_be_in_use_stays(root):
    """A stage or a sweep that runs may be about to use any shared file."""
    shared = ("embeddings/v0old", "embeddings/ff-nobody")
    in_use = dict.fromkeys(shared, "a sweep runs on this store")
    with Held(root / "store" / "fit" / "old"):
        assert reasons(root, orphans=True) == {"fit/old": "in use"} | in_use
    made = {"fit/old": "made since the start of a sweep that runs"}
    with use_sweep(root / "b"):
        assert reasons(root, orphans=True) == in_use | made
        used(root, days_ago=1)
        assert reasons(root, orphans=True) == in_use
    assert gone(root, orphans=True) == {NOBODYS, *OLD_VIEW}


def test_unfinished_stages_stay_with_their_sweep_and_keep_what_they_may_own(root):
    plan_sweep(root, "c", plan_of("fit/c", "embed/late"))
    begin(root, "embed/late")
    for key in ("fit/c", "fit/lost"):
        fail(root, key, "ValueError: no")
    inventory = take_inventory(root)
    unfinished = {each.key for each in inventory.artefacts if each.state == "unfinished"}
    assert unfinished == {"embed/late", "fit/c", "fit/lost"}
    assert "embeddings/ff-nobody" not in {each.key for each in inventory.orphans()}
    assert gone(root, orphans=True, stages=("fit",)) == {"fit/old", "fit/lost"}
    why = "embed/late is not finished and may use it"
    assert reasons(root, orphans=True) == {"embeddings/ff-nobody": why}
    # Once its own sweep is named, the embedding is nobody's.
    assert gone(root, orphans=True, sweeps=("c",)) == {"fit/c", "embed/late", NOBODYS}


def test_nothing_goes_while_it_is_not_known_what_is_in_use(root):
    selection = Selection(sweeps=("b",))
    for use, folder, said in (
        (use_sweep, root / "b", "b: it runs now; stop it first"),
        (Held, root / "store" / "fit" / "b", "b: some of its stages run now"),
        (use_store, root, "trials run that no plan names"),
    ):
        with use(folder), pytest.raises(InputError, match=said):
            remove(root, selection)
    for plan, said in (("{", "b: has no readable plan.json, .*report"), ('{"layout": 2}', "newer")):
        (root / "b" / "plan.json").write_text(plan)
        with pytest.raises(InputError, match=said):
            remove(root, selection)


def test_what_is_taken_while_it_is_decided_stays(root, monkeypatch):
    early = take_inventory(root)
    monkeypatch.setattr(clean_module, "take_inventory", lambda _: early)
    shutil.rmtree(root / "store" / "fit" / "old")
    with Held(root / "store" / "embed" / "old"):
        assert reasons(root, orphans=True) == {
            "embed/old": "in use",
            "embeddings/v0old": "embed/old uses it",
            "fit/old": "another process removed it",
        }


def test_an_index_that_cannot_be_read_keeps_everything_without_a_name(root):
    for text in ("", '{"a": [["x"]]}'):
        (root / "store" / "embed" / "ab" / "embeddings.json").write_text(text)
        assert {"embeddings/v0view", "embeddings/ff-nobody"} <= set(reasons(root, orphans=True))


def test_temporary_files_are_nobodys(root):
    left = {"embeddings/00/.00x.npy.abc", "prepared/.prepared-9.abc/images.npy"}
    for name in left:
        (root / "store" / name).parent.mkdir(exist_ok=True)
        (root / "store" / name).write_bytes(bytes(10))
    assert gone(root, stages=("temporary",)) == left


def test_a_stage_that_waited_for_a_removal_begins_in_a_new_directory(root):
    run_dir = root / "store" / "fit" / "old"
    removal = Held(run_dir)

    def end_removal() -> None:
        run_dir.rename(root / "store" / ".removed-fit-old-1")
        removal.__exit__()

    with hold(run_dir, on_wait=end_removal):
        (run_dir / "new").touch()
    assert sorted(path.name for path in run_dir.iterdir()) == [".lock", "new"]


def test_an_interrupted_removal_leaves_no_stage_that_looks_complete(root):
    stop = mock.patch.object(shutil, "rmtree", side_effect=KeyboardInterrupt)
    with stop, pytest.raises(KeyboardInterrupt):
        remove(root, Selection(orphans=True, stages=("fit",)))
    assert not (root / "store" / "fit" / "old").exists()
    (half,) = take_inventory(root).half_removed
    assert (half / "DONE.json").is_file()
    assert remove(root, Selection(orphans=True, stages=("embed",))).left == []
    assert take_inventory(root).half_removed == []


def test_what_may_not_be_renamed_is_one_line(root, monkeypatch):
    refusal = OSError(30, "Read-only file system", str(root / "store" / "fit" / "old"))
    monkeypatch.setattr(Path, "rename", mock.Mock(side_effect=refusal))
    with pytest.raises(InputError, match=r"fit/old: cannot be removed \(Read-only file system\)"):
        remove(root, Selection(orphans=True, stages=("fit",)))


def test_a_sweep_that_is_starting_is_waited_for(root, monkeypatch):
    """It holds the store until what it refers to is known."""
    starting = Held(root / "store")

    def end_start() -> None:
        plan_sweep(root, "c", plan_of("fit/old"))
        starting.__exit__()

    monkeypatch.setattr(clean_module, "hold", lambda store: hold(store, on_wait=end_start))
    removed = {each.key for each in remove(root, Selection(orphans=True)).removed}
    assert removed == {"embed/old", "embeddings/v0old", "embeddings/ff-nobody"}


def test_a_selection_is_shown_before_it_is_removed(root, monkeypatch, capsys):
    def clean(*words):
        return run_command(monkeypatch, capsys, "clean", "--root", root, *words)

    used(root, "a", "b", days_ago=40)
    before, fits = files(root), ("--orphans", "--stage", "fit")
    assert "fit             4  5.3 kB        1  40 d ago" in clean()[1]
    assert "nothing was removed: say what" in clean("--yes")[1]
    said = "would remove nothing\nkept 1 score (1.3 kB): sweep a refers to it\n"
    assert clean("--stage", "score", "--older-than", "0d") == (0, said, "")
    said = "  fit/old  1.3 kB\nwould remove 1 fit (1.3 kB); add --yes to do it\n"
    assert clean(*fits) == (0, said, "")
    holds = "the store holds none; it holds embed, embeddings, fit, prepared, score"
    assert clean("--stage", "fits") == (2, "", f"error: --stage fits: {holds}\n")
    said = f"error: --sweep c: no such sweep in {root}; known: a, b\n"
    assert clean("--sweep", "c") == (2, "", said)
    assert clean("--sweep", root / "a") == clean("--sweep", "a") != clean()
    assert clean("--sweep", "a")[0] == 0
    assert files(root) == before
    plan_sweep(root, "c", plan_of("score/a"))
    assert reasons(root, stages=("score",)) == {"score/a": "sweeps a, c refer to it"}
    assert clean(*fits, "--yes") == (0, "removed 1 fit (1.3 kB)\n", "")
    assert files(root) != before


def test_ages():
    assert [parse_age(text) for text in ("0d", "12h", "30d", "2w")] == [0, 43200, 2592000, 1209600]
    for text in ("30", "-1d", "1.5d"):
        with pytest.raises(InputError, match="write a number and h, d or w, as 30d"):
            parse_age(text)
