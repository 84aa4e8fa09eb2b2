"""Which rows were tested on the same images: only these stand in one table."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from experiments.results.rows import SOURCE, TESTED

TEST_SET = "test_set"


def with_test_sets(results: pd.DataFrame) -> pd.DataFrame:
    """Number each row's set of test images within its cohort, as column `test_set`: 0, 1...

    Files whose rows share test images have one set: the folds of a cross-tested sweep differ, and
    a fold may be missing. Rows of older files name none: they count as tested on the same images
    as other such rows on as many exams.
    """
    from scipy.sparse import csgraph  # slow to import, needed here only

    results = results.reset_index(drop=True)
    known = results.reindex(columns=["n_exams", TESTED, SOURCE])
    tested = known[TESTED].fillna("unknown, " + known["n_exams"].astype(str))
    sources = known[SOURCE].fillna("")
    numbers = pd.Series(0, index=results.index)
    for _, rows in results.groupby("test_cohort", sort=False).groups.items():
        # Files and sets of images are joined by the rows; parts are numbered as files appear.
        counts = pd.crosstab(sources[rows], tested[rows]).loc[sources[rows].unique()]
        _, parts = csgraph.connected_components((counts @ counts.T).to_numpy(), directed=False)
        numbers[rows] = sources[rows].map(dict(zip(counts.index, parts, strict=True)))
    return results.assign(**{TEST_SET: numbers})


def _sources(rows: pd.DataFrame) -> list[Path]:
    return [Path(path) for path in rows.reindex(columns=[SOURCE])[SOURCE].dropna().unique()]


def set_files(rows: pd.DataFrame) -> str:
    """The folders whose results some rows come from."""
    return ", ".join(dict.fromkeys(str(source.parent) for source in _sources(rows)))


def apart_notes(done: pd.DataFrame) -> list[str]:
    """Sentences on what was tested on different images, and what of the settings differs."""
    notes = []
    for cohort, rows in done.groupby("test_cohort", sort=False):
        if rows[TEST_SET].nunique() < 2:
            continue
        files = {number: set_files(own) for number, own in rows.groupby(TEST_SET)}
        differing = _differing([source.with_name("config.yaml") for source in _sources(rows)])
        why = f"of their settings these differ: {', '.join(differing)}"
        if not differing:
            why = "their images or annotations themselves differ, or one does not say which it has"
        notes.append(
            f"{cohort}: tested on different images by {' and by '.join(files.values())}, so each "
            f"has tables of its own; {why}."
        )
    if len(_sources(done[done.reindex(columns=[TESTED])[TESTED].isna()])) > 1:
        notes.append(
            "Files of older versions do not name their test images: those with as many exams are "
            "taken for tested on the same ones; `sonosweep report` writes them anew."
        )
    return notes


def _differing(recipes: Sequence[Path]) -> list[str]:
    """`key: one or other` of each setting that chooses the test images and is not the same in all
    recipes that can be read.
    """
    found = []
    for path in recipes:
        with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
            recipe = yaml.safe_load(path.read_text())
            found.append({name: recipe[name] for name in ("data", "split")})
    settings = pd.json_normalize(found).astype(str)
    values = {key: settings[key].unique() for key in settings}
    return [f"{key} ({' or '.join(each)})" for key, each in values.items() if len(each) > 1]
