"""Broken results.csv and per_image.csv: one line that names the file, and never a wrong table."""

import pandas as pd
import pytest
from test_tested import rows as made

from datamodules.errors import InputError
from experiments.results.compact import compact_tables, read_results
from experiments.results.rows import read_rows


def frame(**changes):
    parts = [
        made(name, [0.8], test_images="a", hausdorff_mm_mean=2.0) for name in ("real", "strong")
    ]
    return pd.DataFrame([row for part in parts for row in part]).assign(**changes)


GOOD = frame().to_csv(index=False)
HEADER, REAL, STRONG = GOOD.splitlines(keepends=True)
FAULTS = {
    "empty": ("", "an empty file"),
    "blank": ("\n\n", "results.csv"),
    "latin": (GOOD.replace("strong-a", "str\xf6ng").encode("latin-1"), "not UTF-8"),
    "utf16": (GOOD.encode("utf-16"), "not UTF-8"),
    "more fields": (GOOD + REAL.replace("\n", ",1\n"), "row 3 has 24 fields instead of 23"),
    "all more fields": (HEADER + REAL.replace("\n", ",1\n"), "row 1 has 24 fields instead of"),
    "fewer fields": (GOOD.replace(",0.8,2.0\n", ",0.8\n", 1), "row 1 has 22 fields instead of"),
    "open quote": (GOOD + '"\n', "not readable as CSV"),
    "open last": (GOOD.replace(STRONG, ',"'.join(STRONG.rsplit(",", 1))), "not readable as CSV"),
    "huge": (GOOD + "x" * 2**18 + "\n", "not readable as CSV"),
    "two of one": (GOOD.replace("hausdorff_mm_mean", "seed"), "column seed stands twice"),
    "images": (GOOD.replace("dice_mean", "dice"), "scores of images; give the results.csv"),
    "other": ("a,b\n1,2\n", "not a results.csv (no dice_mean)"),
    "older": (GOOD.replace("segmenter", "kind"), "no column segmenter; write it again with"),
    "no status": (GOOD.replace("status", "state"), "no column status"),
    "cut": (GOOD[:-1], "cut short"),
    "header": (HEADER, "no rows"),
    "repeated": (GOOD + REAL, "trial real-a stands twice"),
    "text": (frame(n_real=[5, "many"]), "n_real of trial strong-a is many, no number"),
    "true": (frame(dice_mean=True), "dice_mean of trial real-a is True, no number"),
    "infinite": (frame(hausdorff_mm_mean=[1, float("inf")]), "of trial strong-a is inf, not fin"),
    "per cent": (frame(dice_mean=[0.8, 80]), "dice_mean of trial strong-a is 80.0, not in 0 to 1"),
    "below": (frame(dice_mean=[-0.1, 0.8]), "dice_mean of trial real-a is -0.1"),
    "status": (frame(status=["done", "Done"]), "status of trial strong-a is Done, not one of"),
    "no cohort": (frame(test_cohort=["hc18", ""]), "test_cohort of trial strong-a is blank"),
    "no trial": (frame(trial_id=["a", " "]), "row 2 has no trial_id"),
}


def written(path, content):
    text = content.to_csv(index=False) if isinstance(content, pd.DataFrame) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(read, *arguments):
    with pytest.raises(InputError) as refused:
        read(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path, fault):
    content, words = FAULTS[fault]
    path = written(tmp_path / "results.csv", content)
    said = refusal(read_results, [path])
    assert said.startswith(f"{path}: ")
    assert words in said


@pytest.mark.parametrize("fault", ["empty", "latin", "more fields", "all more fields", "cut"])
def test_images_are_read_as_strictly(tmp_path, fault):
    content, words = FAULTS[fault]
    is_text = isinstance(content, str)
    content = content.replace(*(("dice_mean", "dice") if is_text else (b"dice_mean", b"dice")))
    path = written(tmp_path / "per_image.csv", content)
    assert words in refusal(read_rows, path)


def test_two_files_must_agree_on_what_both_scored(tmp_path):
    def both(**changes):
        files = [tmp_path / "a.csv", tmp_path / "b.csv"]
        return [written(p, frame(**c)) for p, c in zip(files, ({}, changes), strict=True)]

    assert len(read_results(both())) == 2
    assert len(read_results(both(dice_mean=0.8 * (1 + 1e-12)))) == 2, "a last digit"
    assert len(read_results(both(dice_mean=0.7, test_images="b"))) == 4, "other images"
    for name, value in (("dice_mean", 0.81), ("hausdorff_mm_mean", 2.1)):
        paths = both(**{name: [frame()[name][0], value]})
        said = refusal(read_results, paths)
        assert all(str(path) in said for path in paths)
        assert f"trial strong-a has {name} {value}" in said


def test_one_fit_scored_under_two_settings_is_no_damage(tmp_path):
    def both(*scores):
        return [
            written(tmp_path / f"{i}.csv", frame(dice_mean=0.8 + 0.01 * i, score_id=score))
            for i, score in enumerate(scores)
        ]

    paths = both("score/a", "score/b")
    said = refusal(read_results, paths)
    assert said == (
        f"{paths[1]}: trial real-a was scored on hc18 under other settings than in {paths[0]} "
        "(score/b, not score/a); table these sweeps apart"
    )
    for scores in (("score/a", "score/a"), ("score/a", None)):
        assert "write both again" in refusal(read_results, both(*scores))


def test_a_measure_without_a_column_is_refused(tmp_path):
    found = read_results([written(tmp_path / "results.csv", GOOD)])
    with pytest.raises(InputError, match=r"results.csv: no column dice_trimester_weighted_mean"):
        compact_tables(found, measure="dice_weighted", format_name="csv")
