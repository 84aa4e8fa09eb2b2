"""Results of sweeps on different test images: never in one table."""

import pandas as pd
import yaml
from results_parts import ROW

from experiments.results.compact import compact_tables, read_results
from experiments.results.tested import with_test_sets


def rows(condition, values, *, trial="", test_images, **changes):
    made = ROW | {"condition": condition, "segmenter": "unet", "support": 0, "generator_seed": 0}
    if condition == "mean_mask":
        made |= {"segmenter": "", "n_real": 0, "support": None}
    made |= {"trial_id": trial or f"{condition}-{test_images}", "test_images": test_images}
    made |= {"output": "ellipse", "n_exams": 6}
    return [made | {"dice_mean": value} | changes for value in values]


def written(folder, *parts, seed=0, root="hc18"):
    folder.mkdir()
    frame = pd.DataFrame([row for part in parts for row in part])
    frame.to_csv(folder / "results.csv", index=False)
    content = {"data": {"root": root}, "split": {"seed": seed, "test": 6}}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "results.csv"


def table(*paths, format_name="markdown"):
    return compact_tables(read_results(paths), measure="dice", format_name=format_name)


def test_what_was_tested_on_other_images_is_tabled_apart_and_says_why(tmp_path):
    first = written(
        tmp_path / "a",
        rows("real", [0.8], test_images="12e4"),
        rows("mean_mask", [0.634], test_images="12e4"),
    )
    second = written(tmp_path / "b", rows("strong", [0.9], test_images="77aa"), seed=1, root="my")
    text = table(first, second)
    own, other = text.split(f"### hc18 of {tmp_path / 'b'}, ")
    assert f"### hc18 of {tmp_path / 'a'}, no box (whole image): Dice %, 6 exams" in own
    assert "| constant mean mask" in own
    assert "63.4" in own
    assert "strong augmentation | **90.0** |" in other
    assert "63.4" not in other
    assert f"tested on different images by {tmp_path / 'a'} and by {tmp_path / 'b'}" in other
    assert "these differ: data.root (hc18 or my), split.seed (0 or 1)." in other
    plain = table(first, second, format_name="csv").splitlines()
    assert [line.split(",")[2] for line in plain[1:]] == [str(tmp_path / n) for n in "aab"]
    latex = table(first, second, format_name="latex")
    assert latex.count("\\label{tab:compact-hc18-whole_image}") == 1
    assert latex.count("\\label{tab:compact-hc18-whole_image-2}") == 1


def test_the_same_images_stand_in_one_table_and_folds_are_no_other_images(tmp_path):
    first = written(
        tmp_path / "a",
        *(rows("real", [0.8], trial=f"r{n}", test_images=f"f{n}", fold=n) for n in (0, 1)),
    )
    # The same folds, of which one is not done yet.
    waiting = {"status": "pending", "output": None}
    second = written(
        tmp_path / "b",
        rows("strong", [0.9], test_images="f1", fold=1),
        rows("real", [None], trial="r0", test_images="f0", **waiting),
    )
    text = table(first, second)
    assert text.count("###") == 1
    assert "real only | 80.0 |" in text
    assert "strong augmentation | **90.0** |" in text
    assert "different images" not in text
    assert "left out" not in text, "r0 is done by the first"


def test_files_that_share_a_set_join_and_sets_are_numbered_in_a_cohort_by_their_first_row():
    tested = [("a", "1"), ("a", "2"), ("b", "7"), ("c", "2"), ("c", "3"), ("d", "3")]
    found = pd.DataFrame(tested, columns=["source", "test_images"]).assign(test_cohort="hc18")
    found.loc[len(found)] = {"source": "b", "test_images": "9", "test_cohort": "es"}
    assert with_test_sets(found)["test_set"].tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_one_fit_tested_on_two_cohorts_counts_in_both(tmp_path):
    files = [
        written(tmp_path / name, rows("real", [d], trial="t", test_images=name, test_cohort=name))
        for name, d in (("es", 0.8), ("af", 0.7))
    ]
    text = table(*files)
    assert "80.0" in text
    assert "70.0" in text


def test_files_without_the_column_are_read_and_said_to_be_without(tmp_path):
    def old(name, condition, n_exams=6):
        (row,) = rows(condition, [0.8], test_images=name, n_exams=n_exams)
        del row["test_images"]
        return written(tmp_path / name, [row])

    first, second, more = old("a", "real"), old("b", "strong"), old("c", "warp", n_exams=9)
    assert "do not name" not in table(first)
    both = table(first, second)
    assert both.count("###") == 1
    assert "do not name their test images" in both
    assert table(first, more).count("###") == 2
    named = written(tmp_path / "d", rows("warp", [0.9], test_images="d"))
    assert table(first, named).count("###") == 2
