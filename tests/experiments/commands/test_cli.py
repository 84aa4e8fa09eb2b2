"""The command line from a user's side: help, bad input, and what is (not) imported and written."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.layouts import LAYOUTS

CSV = "training_set_pixel_size_and_HC.csv"


def is_one_clear_line(code: int, err: str, words: list[str]) -> None:
    """What a user's mistake gets."""
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--help",),
        ("data", "--help"),
        *(
            (name, "--help")
            for name in ("demo", "sweep", "diffusion", "synthesize", "segment", "report")
        ),
    ],
)
def test_help_names_what_there_is(sonosweep, words):
    code, out, err = sonosweep(*words)
    assert code in (0, 2)
    assert "Usage: sonosweep" in out + err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep demo seed=1 unet.steps=3 seed=2", "seed: given twice, as 1 and as 2; remove one"),
        ("trial demo seed=1 seed=1", "seed: given twice"),
        ("table demo name=a name=b", "name: given twice"),
        ("table demo --output mask evaluation.output=mask", "evaluation.output: given twice"),
        ("doctor unet.steps=3 unet.steps=4", "unet.steps: given twice"),
        ("table demo --measure dice", "--measure dice: for files"),
        ("table a.csv b.csv --kind box", "--kind box: of a recipe or a sweep"),
        ("table a.csv --kind boks", "--kind boks: unknown; use one of"),
        ("table demo --kind box --format csv", "--kind box --format csv: no such table"),
        ("report demo --explain a/b/5/real --into A.md", "--explain prints and writes nothing"),
        ("report demo --command make", "--command make: the block"),
        ("report demo --into absent.md", "absent.md: no such file"),
        ("bench data --into absent.md", "absent.md: no such file"),
        ("report demo --into plain.md", "plain.md: has no lines <!-- results -->"),
        ("figure runs/x/results.csv", "runs/x/results.csv: no recipe but rows; give the sweep's"),
        ("status runs/x/results.csv", "runs/x/results.csv: no sweep but rows; give"),
        ("status ''", "an empty name of a sweep"),
        ("sweep ''", "recipe: an empty name"),
        ("clean --older-than 99999999d", "--older-than 99999999d: write a number and h, d or w"),
    ],
)
def test_words_that_do_not_go_are_one_line(sonosweep, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HC18_ROOT", str(tmp_path))
    (tmp_path / "plain.md").write_text("no markers\n")
    code, out, err = sonosweep(*shlex.split(words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["plain.md"]


@pytest.mark.parametrize("words", ["swep", "sweep", "data index", "export RUN", "sweep demo --dry"])
def test_unknown_command_and_option_exit_with_2(sonosweep, words):
    code, _, err = sonosweep(*words.split())
    assert code == 2
    assert "Traceback" not in err


def pixel_size(value):
    """Give the first image another pixel size."""
    return lambda data: re.sub(rb"(?m)^(001_HC\.png),[^,]*", rb"\1," + value.encode(), data)


def half(data):
    return data[: len(data) // 2]


BLANK = cv2.imencode(".png", np.zeros((54, 80), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("training_set/003_HC.png", None, ["003_HC.png"]),
        ("training_set/003_HC_Annotation.png", None, ["003_HC"]),
        ("training_set/005_HC.png", half, ["005_HC.png"]),
        ("training_set/005_HC.png", lambda _: b"not a picture", ["005_HC.png"]),
        ("training_set/005_HC_Annotation.png", half, ["005_HC_Annotation.png"]),
        ("training_set/003_HC_Annotation.png", lambda _: BLANK, ["003_HC_Annotation.png"]),
        (CSV, None, [CSV]),
        (CSV, lambda data: data[: data.index(b"008_HC.png")], ["008_HC.png"]),
        (CSV, lambda data: data.replace(b"pixel size(mm)", b"spacing"), ["pixel size(mm)"]),
        (CSV, pixel_size("-0.1"), ["001_HC.png", "-0.1"]),
        (CSV, pixel_size("0"), ["001_HC.png"]),
        (CSV, pixel_size("small"), ["001_HC.png", "small"]),
        (CSV, pixel_size("nan"), ["001_HC.png", "nan"]),
    ],
)
@pytest.mark.parametrize("command", ["index", "sweep"])
def test_bad_data_is_one_line_that_names_the_file(
    sonosweep, hc18_folder, tmp_path, command, file, change, words
):
    path = hc18_folder / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    given = ["data", "index", hc18_folder]
    if command == "sweep":
        given = ["sweep", "demo", f"data.root={hc18_folder}", f"store.root={tmp_path / 'runs'}"]
        given += ["data.subset.n_images=null", "split.train=null", "segmenter.backbone=tiny"]
    code, _, err = sonosweep(*given)
    is_one_clear_line(code, err, words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.root=/not/there"], ["/not/there"]),
        (["data.root=@empty"], ["@empty"]),
        (["segmenter.stepz=4"], ["segmenter.stepz", "segmenter.steps"]),
        (["sweep.real_fraction=[2]"], ["sweep.real_fraction=2"]),
        (["sweep.real_fraction=[]", "sweep.real_count=[900]"], ["sweep.real_count=900"]),
        (["data.subset.n_images=500"], ["data.subset.n_images=500", "12"]),
        (["split.test=8", "split.val=5"], ["split.val=5", "12"]),
        (["split.test=12"], ["split.val"]),
        (["segmenter.backbone=lite", "segmenter.weights_path=@wrong"], ["sha256", "@wrong"]),
        (["segmenter.backbone=lite", "segmenter.weights_path=/no.pth"], ["/no.pth"]),
        (["synthesis.folder=@empty", "sweep.condition=[synthetic]"], ["@empty"]),
        (["data.test_cohorts=[/nope]"], ["/nope"]),
        (["store.root=@wrong/runs"], ["store.root"]),
    ],
)
def test_bad_settings_are_one_line_that_names_the_key(
    sonosweep, hc18_folder, tmp_path, changes, words
):
    (tmp_path / "@empty").mkdir()
    (tmp_path / "@wrong").write_text("these are not weights")
    base = [
        f"data.root={hc18_folder}",
        "data.subset.n_images=null",
        "split.test=3",
        "split.val=2",
        "split.train=null",
        "synthesis.generator_count=4",
        "segmenter.backbone=tiny",
        "store.root=@runs",
    ]
    by_key = {word.partition("=")[0]: word for word in [*base, *changes]}
    filled = [word.replace("=@", f"={tmp_path}/@") for word in by_key.values()]
    code, _, err = sonosweep("sweep", "demo", *filled)
    is_one_clear_line(code, err, words)
    assert not (tmp_path / "@runs").exists()


@pytest.fixture
def failing(monkeypatch):
    """Let the reading of data end by a system error."""

    def fail(number, *path):
        def read(_):
            raise OSError(number, os.strerror(number), *path)

        monkeypatch.setitem(LAYOUTS, "hc18", replace(LAYOUTS["hc18"], read=read))

    return fail


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "check who may read or write it"),
        (errno.ENOSPC, "check the disk"),
        (errno.EROFS, "check the disk"),
        (errno.EFBIG, "check the disk"),
        (errno.ESTALE, "check the disk"),
        (errno.ENAMETOOLONG, "give another path"),
        (errno.ENOTDIR, "give another path"),
    ],
)
def test_a_disk_that_fails_is_one_line(sonosweep, failing, tmp_path, number, hint):
    failing(number, str(tmp_path))
    code, _, err = sonosweep("data", "index", tmp_path)
    is_one_clear_line(code, err, [f"{tmp_path}: {os.strerror(number)}; {hint}"])


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOENT])
def test_another_system_error_is_a_fault_of_ours(sonosweep, failing, tmp_path, number):
    failing(number)
    with pytest.raises(OSError, match=os.strerror(number)):
        sonosweep("data", "index", tmp_path)


def test_a_typing_error_is_answered_before_torch_is_imported(tmp_path):
    script = (
        "import sys\n"
        "from experiments.__main__ import main\n"
        "root, *overrides = sys.argv[1:]\n"
        "for override in overrides:\n"
        "    sys.argv = ['sonosweep', 'sweep', 'demo', root, override]\n"
        "    try:\n        main()\n    except SystemExit as ended:\n"
        "        heavy = {'torch', 'lightning', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "        print(ended.code, sorted(heavy))\n"
    )
    overrides = ("segmenter.stepz=3", f"data.root={tmp_path}/none")
    ended = subprocess.run(
        [sys.executable, "-c", script, f"store.root={tmp_path}/runs", *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "HC18_ROOT": ""},
        check=False,
    )
    assert ended.stdout == "2 []\n2 []\n", ended.stderr


def test_a_locale_without_utf8_still_reads_and_writes_every_sign(tmp_path):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.__main__ import main\n"
        "sys.argv = ['sonosweep', '--help']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n"
        f"    Path({str(tmp_path / 'minus.txt')!r}).write_text(chr(0x2212) * (ended.code == 0))\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **ascii_only}, check=True)
    assert (tmp_path / "minus.txt").read_bytes() == "−".encode()


def test_index_prints_for_people_and_for_programs(sonosweep, monkeypatch, hc18_folder):
    monkeypatch.setenv("COLUMNS", "200")
    found = json.loads(sonosweep("data", "index", hc18_folder, "--json")[1])
    assert (found["images"], found["exams"], found["unlabelled_test_images"]) == (12, 8, 2)
    assert found["frames_per_exam"] == {"1": 5, "2": 2, "3": 1}
    assert found["sizes"] == {"80x54": 12}
    code, out, _ = sonosweep("data", "index", hc18_folder)
    assert code == 0
    assert "8 (5 with 1 frame, 2 with 2 frames, 1 with 3 frames)" in out
    assert "80x54 (12)" in out


def test_phantom_command_writes_a_set_that_index_accepts(sonosweep, tmp_path):
    root = tmp_path / "my phantoms"
    code, out, _ = sonosweep("data", "phantom", root, "--n-exams", "3")
    assert out.rstrip().endswith(f"sonosweep data index '{root}'")
    assert code == 0
    assert str(root) in out.replace("\n", "")
    code, out, _ = sonosweep("data", "index", root, "--json")
    assert json.loads(out)["cohort"] == "phantom"
    code, _, err = sonosweep("data", "phantom", root)
    is_one_clear_line(code, err, ["phantoms", "not empty"])
