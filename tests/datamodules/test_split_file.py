"""Published splits: hashed, compared with the data, and refused where they leak."""

import hashlib
import json

import pytest

from datamodules.errors import InputError
from datamodules.samples import read_hc18
from datamodules.split_file import (
    folds_from_file,
    read_split_file,
    split_from_file,
    write_split_file,
)
from datamodules.splits import Split, Unit

SPLIT = Split(
    train=("001_HC", "004_2HC", "004_HC"), val=("003_HC",), test=("008_HC", "006_HC", "006_2HC")
)
NAMED = sorted([*SPLIT.train, *SPLIT.val, *SPLIT.test])


@pytest.fixture
def samples(hc18_folder):
    return read_hc18(hc18_folder)


@pytest.fixture
def path(samples, tmp_path):
    path = tmp_path / "split.json"
    write_split_file(path, name="demo", version="1.0", split=SPLIT, samples=samples)
    return path


def units(samples, groups=None):
    """Units whose groups are their exams, but for those of the named exams."""
    return [
        Unit(
            sample_id=s.sample_id,
            group_id=(groups or {}).get(s.exam_id, s.exam_id),
            exam_id=s.exam_id,
            frame=s.frame,
            stratum=0,
        )
        for s in samples
    ]


def reseal(path, change):
    """Change the content and state the right hash again."""
    content = json.loads(path.read_text())
    change(content)
    del content["sha256"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))


def test_file_holds_the_split_and_the_hashes(path, samples):
    content = json.loads(path.read_text())
    assert content["train"] == list(SPLIT.train)
    assert content["test"] == list(SPLIT.test)
    stated = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert stated == hashlib.sha256(canonical).hexdigest()
    files = {s.sample_id: s.image_path.read_bytes() for s in samples}
    lines = [[name, hashlib.sha256(files[name]).hexdigest()] for name in NAMED]
    images = hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()
    assert content["dataset"] == {"cohort": "hc18", "n_images": 7, "sha256": images}
    found = read_split_file(path)
    assert (found.name, found.version, found.split, found.folds) == ("demo", "1.0", SPLIT, ())
    assert found.sample_ids == NAMED
    found.check_against(samples)


FOLDS = (
    SPLIT,
    Split(train=("006_HC", "002_HC"), val=("003_HC",), test=("001_HC", "004_HC")),
)


@pytest.fixture
def folded(samples, tmp_path):
    path = tmp_path / "folds.json"
    write_split_file(path, name="k", version="2", split=SPLIT, samples=samples, folds=FOLDS)
    return path


def test_folds_are_kept(folded, samples):
    published = read_split_file(folded)
    assert (published.split, published.folds) == (SPLIT, FOLDS)
    assert published.test_ids == ("008_HC", "006_HC", "006_2HC", "001_HC", "004_HC")
    assert published.dataset.n_images == 8
    assert folds_from_file(folded, units(samples), n_folds=2) == FOLDS
    assert split_from_file(folded, units(samples)) == SPLIT
    assert published.sample_ids == sorted([*NAMED, "002_HC"])


def test_a_file_of_another_number_of_folds_is_refused(folded, path, samples):
    with pytest.raises(InputError, match=r"n_folds=3: .*folds\.json holds 2 folds; set .*=2 or"):
        folds_from_file(folded, units(samples), n_folds=3)
    with pytest.raises(InputError, match=r"split\.json holds a single split; set .*n_folds=1 or"):
        folds_from_file(path, units(samples), n_folds=2)


def test_every_fold_is_checked(folded, samples):
    # The first fold does not name 002, so that only the second one leaks.
    groups = {"001": "both", "002": "both"}
    assert split_from_file(folded, units(samples, groups)) == SPLIT
    with pytest.raises(InputError, match=r"002_HC \(train\) and 001_HC \(test\) show one exam"):
        folds_from_file(folded, units(samples, groups), n_folds=2)
    with pytest.raises(InputError, match=r"not in the data \(002_HC\)"):
        folds_from_file(folded, [u for u in units(samples) if u.exam_id != "002"], n_folds=2)


@pytest.mark.parametrize(
    ("old", "new"), [('"008_HC"', '"007_HC"'), ('"1.0"', '"1.1"'), ('"hc18"', '"other"')]
)
def test_edited_file_is_refused(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=r"split\.json: its content has the hash .* edited"):
        read_split_file(path)


def test_spelling_of_the_json_does_not_count(path):
    expected = read_split_file(path)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert read_split_file(path) == expected


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{", '{"train": []}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(InputError, match=r"other\.json: not a split file"):
        read_split_file(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_split_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["val"].append("001_HC"), "001_HC is named twice in its parts"),
        (lambda c: c.update(folds=[["001_HC"]]), "not a split file .a fold is an object of train"),
        (lambda c: c.update(folds=[{"train": []}]), "not a split file .a fold is an object"),
        (
            lambda c: c.update(folds=[{part: c[part] for part in ("train", "val", "test")}] * 2),
            "006_2HC is named twice in its folds' test parts",
        ),
        (
            lambda c: c.update(folds=[{"train": ["001_HC"], "val": ["001_HC"], "test": []}]),
            "001_HC is named twice in its parts",
        ),
        (
            lambda c: c.update(folds=[{"train": ["001_HC"], "val": [], "test": []}]),
            "its parts are not those of its first fold",
        ),
        (lambda c: c.update(val="003_HC"), "not a split file .a part is a list"),
        (lambda c: c.update(val=[3]), "not a split file .a part is a list"),
        (lambda c: c.update(extra=1), "not a split file .keys"),
        (lambda c: c["dataset"].update(extra=1), "not a split file"),
        (lambda c: c.update(dataset=[]), "not a split file"),
    ],
)
def test_wrong_content_with_a_right_hash_is_refused(path, change, message):
    reseal(path, change)
    with pytest.raises(InputError, match=message):
        read_split_file(path)


def test_published_file_is_not_overwritten(path, samples):
    before = path.read_bytes()
    write_split_file(path, name="demo", version="1.0", split=SPLIT, samples=samples)
    with pytest.raises(InputError, match="exists and says something else"):
        write_split_file(path, name="demo", version="1.1", split=SPLIT, samples=samples)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="split name"):
        write_split_file(path, name=" ", version="1", split=SPLIT, samples=samples)
    with pytest.raises(InputError, match="no such folder"):
        write_split_file(
            path.parent / "no" / "a.json", name="a", version="1", split=SPLIT, samples=samples
        )


def test_data_of_another_content_are_refused(path, samples):
    found = read_split_file(path)
    found.check_against([s for s in samples if s.sample_id != "002_HC"])
    with pytest.raises(InputError, match=r"1 of the 7 images it names are not.*\(008_HC\)"):
        found.check_against([s for s in samples if s.sample_id != "008_HC"])
    image = next(s.image_path for s in samples if s.sample_id == "003_HC")
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"split demo 1\.0: the 7 images.*not the files"):
        found.check_against(samples)


def test_split_from_file(path, samples):
    assert split_from_file(path, units(samples)) == SPLIT


def test_split_from_file_refuses_what_leaks_or_lacks(path, samples):
    with pytest.raises(InputError, match=r"003_HC \(val\) and 008_HC \(test\) show one exam"):
        split_from_file(path, units(samples, {"003": "both", "008": "both"}))
    with pytest.raises(InputError, match=r"not in the data \(001_HC"):
        split_from_file(path, units(samples)[1:])
    reseal(path, lambda c: c.update(val=[]))
    with pytest.raises(InputError, match="the val part is empty"):
        split_from_file(path, units(samples))
