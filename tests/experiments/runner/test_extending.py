"""What docs/extending.md shows, as a user has it: a package beside ours, through whole commands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from folder_parts import write_hc18_folder
from safetensors.numpy import load_file
from sweep_parts import LEAN, command, environment
from toy_recipe import TOY

from datamodules.annotation import read_annotation
from datamodules.errors import InputError
from datamodules.samples import read_hc18
from experiments.config.extensions import import_extensions
from experiments.config.paths import ROOT
from experiments.store.fitted import settings_of_run
from experiments.store.runs import read_manifest

DOCUMENT = ROOT / "docs" / "extending.md"
ROOMS = ROOT / "tests" / "parts" / "my_rooms"
TINY = [
    *LEAN,
    "wandb.mode=disabled",
    "sweep.segmenter=[one_layer]",
    "sweep.generator=[two_levels]",
    "sweep.real_fraction=[]",
    "sweep.real_count=[4]",
    "statistics.primary.real_count=4",
    "split.val=1",
]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


def call(words, *, cwd, path=()):
    """A command with our package and more on PYTHONPATH."""
    places = ":".join(map(str, [ROOT, *path]))
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={**environment(), "PYTHONPATH": places},
        cwd=cwd,
        timeout=500,
        check=False,
    )


SEVERAL = """
import contextlib, glob, io, json, sys
import pytest
from experiments.__main__ import main

ended = []
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = [min(glob.glob(word)) if "*" in word else word for word in words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = pytest.main(words[1:]) if words[0] == "pytest" else main()
        except SystemExit as end:
            code = end.code
    ended.append((code or 0, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""


def in_one_process(*commands, cwd, path=(ROOMS.parent,)):
    """Commands of sonosweep, or of pytest, one after the other: code, output, errors of each.

    A word with a `*` is the first path that it fits when its command begins.
    """
    given = json.dumps([list(map(str, words)) for words in commands])
    ended = call([sys.executable, "-c", SEVERAL, given], cwd=cwd, path=path)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def sweep_words(folder, *changes):
    """The sweep of the document's recipe at toy size, in a folder from `make_folder`."""
    words = command(folder / "pictures", folder / "runs", *TINY, *changes)
    words[words.index(TOY)] = str(folder / "mine.yaml")
    return words


def make_folder(folder):
    """The document's recipe, and the tiny HC18 in the document's layout."""
    (folder / "mine.yaml").write_text(*blocks("yaml"))
    for name in ("pictures", "labels"):
        (folder / "pictures" / name).mkdir(parents=True)
    for sample in read_hc18(write_hc18_folder(folder / "hc18")):
        name = f"{sample.exam_id}-{sample.frame}.png"
        image = sample.image_path.read_bytes()
        (folder / "pictures" / "pictures" / name).write_bytes(image)
        mask = read_annotation(sample.annotation_path).mask * 255
        assert cv2.imwrite(str(folder / "pictures" / "labels" / name), mask)
    return folder


MISTAKES = {
    "extensions=[my_roms]": "extensions: my_roms cannot be imported (ModuleNotFoundError",
    "sweep.segmenter=[one_layr]": "unknown; did you mean one_layer?",
    "segmenters.wide.kind=one_lair": "segmenters.wide.kind=one_lair: unknown; did you",
    "segmenters.wide.side_px=4": "segmenters.wide.side_px=4: must be odd",
    "conditions={own: {pairs: miror}}": "conditions.own.pairs=miror: unknown; did you",
    "data.layout=picture": "data.layout picture: unknown; did you mean pictures?",
}
PREDICT = ("predict", "runs/store/fit/*", "pictures/pictures", "--out", "found")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder and, by its name, how each command in it ended."""
    folder = make_folder(tmp_path_factory.mktemp("extending"))
    also = "sweep.also=[{segmenter: wide, condition: real}]"
    # Without `python -m`.
    sweep = sweep_words(folder, also, "sweep.condition=[real,ungated,mirrored]")[3:]
    commands = {
        "sweep": sweep,
        "report": ("report", "runs/toy/config.yaml"),
        "predict": PREDICT,
        "index": ("data", "index", "pictures", "--extension", "my_rooms", "--json"),
        "own test": ("pytest", "-q", "-p", "no:cacheprovider", ROOMS / "check_one_layer.py"),
        **{change: sweep_words(folder, change)[3:] for change in MISTAKES},
    }
    found = in_one_process(*commands.values(), cwd=folder)
    return folder, dict(zip(commands, found, strict=True))


@pytest.fixture(scope="module")
def swept(ended):
    """A folder, its sweep's results and the last lines of the sweep."""
    folder, found = ended
    code, printed, errors = found["sweep"]
    assert code == 0, printed + errors
    results = pd.read_csv(folder / "runs" / "toy" / "results.csv")
    return folder, results[results["output"] == "mask"], printed


def runs_of(folder, stage):
    return sorted((folder / "runs" / "store" / stage).iterdir())


def test_the_documents_code_is_the_code_that_runs():
    shown = dict(block.split("\n", 1) for block in blocks("python"))
    files = {f"# my_rooms/{path.name}": path.read_text() for path in ROOMS.glob("*.py")}
    assert shown == files


def test_a_row_for_each_of_them_with_its_names(swept):
    _, results, _ = swept
    assert set(results["status"]) == {"done"}
    columns = ["condition", "segmenter", "generator", "pair_labels", "n_generator_labels"]
    assert results[columns].fillna("").to_numpy().tolist() == [
        ["real", "one_layer", "", "", 0],
        ["ungated", "one_layer", "two_levels", "own", 4],
        ["mirrored", "one_layer", "", "", 4],
        ["real", "wide", "", "", 0],
    ]
    assert set(results["test_cohort"]) == {"pictures"}
    assert set(results["prompt"]) == {"whole_image"}
    assert results["trial_id"].str.rsplit("-", n=1).str[0].tolist() == [
        "one_layer-real-n4-p0-s0-g0",
        "one_layer-ungated-two_levels-n4-p0-s0-g0",
        "one_layer-mirrored-n4-p0-s0-g0",
        "wide-real-n4-p0-s0-g0",
    ]
    assert (results["dice_mean"] > 0.3).all()
    assert results["dice_mean"].nunique() == 4


def test_tables_and_sentences_call_them_by_their_labels(swept):
    folder, _, printed = swept
    table = (folder / "runs" / "toy" / "table.md").read_text()
    cells = [row.split(" | ")[:2] for row in table.splitlines() if row.endswith("| 1 |")]
    assert cells == [
        ["| real only", "one_layer"],
        ["| + mirrored pairs", "one_layer"],
        ["| + synthetic, same labels, no gate", "one_layer"],
        ["| real only", "wide"],
    ]
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())
    assert "We compared ungated synthetic pairs on the same label budget" in words
    assert "tested on pictures" in words


def test_each_stage_ran_in_a_process_of_its_own(swept):
    folder, _, _ = swept
    counts = {"fit": 4, "score": 4, "generator": 1, "synthesize": 1, "mirror": 1}
    for stage, count in counts.items():
        found = runs_of(folder, stage)
        assert len(found) == count
        # What a stage prints goes there from the process that was forked for it.
        assert all((run / "log.txt").is_file() for run in found)
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs_of(folder, "fit")]
    assert all(manifest["config"]["extensions"] == ["my_rooms"] for manifest in manifests)
    described = [manifest["segmenter"] for manifest in manifests]
    assert {each["kind"] for each in described} == {"one_layer"}
    assert sorted(each["settings"]["side_px"] for each in described) == [9, 9, 9, 15]


def test_the_generator_drew_what_it_learned_and_the_stage_mirrored(swept):
    folder, _, _ = swept
    (generator,), (drawn,) = runs_of(folder, "generator"), runs_of(folder, "synthesize")
    outside, inside = load_file(generator / "generator" / "levels.safetensors")["levels"]
    assert abs(outside - inside) > 0.05
    for path in sorted((drawn / "image").iterdir()):
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / 255
        mask = cv2.imread(str(drawn / "mask" / f"{path.stem}_Annotation.png"), 0) > 0
        core = cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0
        assert image[core].mean() == pytest.approx(inside, abs=0.03)
    (mirrored,) = runs_of(folder, "mirror")
    originals = [cv2.imread(str(path), 0) for path in (folder / "pictures/pictures").iterdir()]
    for path in (mirrored / "image").iterdir():
        turned = np.fliplr(cv2.imread(str(path), 0))
        assert any(np.array_equal(turned, image) for image in originals)


def test_other_commands_know_them_too(ended):
    folder, found = ended
    for name in ("report", "predict", "index"):
        assert found[name][0] == 0, found[name][2]
    assert "nothing was left to do" in found["report"][1]
    predictions = pd.read_csv(folder / "found" / "predictions.csv")
    assert len(predictions) == 12
    assert predictions["found"].all()
    assert json.loads(found["index"][1])["layout"] == "pictures"


def test_what_a_sweeps_files_say_needs_no_extension(ended):
    folder, _ = ended
    ((code, status, _),) = in_one_process(("status", "toy", "--root", "runs"), cwd=folder, path=())
    assert code == 0
    assert "4 trials: 4 done" in status
    assert "wide" in status


def test_a_run_names_the_extension_that_it_lacks(swept, monkeypatch):
    folder, results, _ = swept
    run = folder / "runs" / "store" / results["fit_id"].iloc[0]
    monkeypatch.delitem(sys.modules, "my_rooms", raising=False)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(ROOMS.parent)])
    with pytest.raises(InputError, match=f"{run}: extensions: my_rooms cannot be imported"):
        settings_of_run(run, read_manifest(run))


def test_the_users_own_test_passes(ended):
    code, printed, errors = ended[1]["own test"]
    assert code == 0, printed + errors


@pytest.mark.parametrize("change", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(ended, change):
    code, _, errors = ended[1][change]
    assert code == 2
    assert MISTAKES[change] in errors
    assert len(errors.splitlines()) == 1


def test_a_module_of_the_working_directory_is_found_and_its_failure_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # As a console script has it.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    Path("rooms_of_here.py").write_text("found = True\n")
    Path("rooms_that_fail.py").write_text("raise RuntimeError('two\\nlines')\n")
    import_extensions(["rooms_of_here"])
    assert sys.modules.pop("rooms_of_here").found
    failed = r"mine.yaml: extensions: rooms_that_fail cannot be imported \(RuntimeError: two lines"
    with pytest.raises(InputError, match=failed):
        import_extensions(["rooms_that_fail"], where="mine.yaml")


@pytest.mark.long
def test_several_devices_share_its_training(tmp_path):
    folder = make_folder(tmp_path)
    words = sweep_words(folder, "sweep.condition=[real]", "trainer.devices=2", "sweep.workers=1")
    ended = call(words, cwd=folder, path=(ROOMS.parent,))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = pd.read_csv(folder / "runs" / "toy" / "results.csv")
    assert results[["status", "segmenter"]].to_numpy().tolist() == [["done", "one_layer"]] * 2
