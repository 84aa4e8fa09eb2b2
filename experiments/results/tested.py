"""Which rows were tested on the same images: only these stand in one table."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    results = results.reset_index(drop=True)
    exams = results.reindex(columns=["n_exams"])["n_exams"]
    tested = results.reindex(columns=[TESTED])[TESTED].fillna("unknown, " + exams.astype(str))
    sources = results.reindex(columns=[SOURCE])[SOURCE].fillna("")
    numbers = pd.Series(0, index=results.index)
    for _, rows in results.groupby("test_cohort", sort=False).groups.items():
        sets: list[set[str]] = []
        for _, own in tested[rows].groupby(sources[rows], sort=False):
            joined = [known for known in sets if known & set(own)]
            place = sets.index(joined[0]) if joined else len(sets)
            sets = [known for known in sets if known not in joined]
            sets.insert(place, set(own).union(*joined))
        of = {image_set: number for number, found in enumerate(sets) for image_set in found}
        numbers[rows] = tested[rows].map(of)
    return results.assign(**{TEST_SET: numbers})


def set_files(rows: pd.DataFrame) -> str:
    """The folders whose results some rows come from."""
    sources = rows.reindex(columns=[SOURCE])[SOURCE].dropna().unique()
    return ", ".join(dict.fromkeys(str(Path(source).parent) for source in sources))


def apart_notes(done: pd.DataFrame) -> list[str]:
    """Sentences on what was tested on different images, and what of the settings differs."""
    notes = []
    for cohort, rows in done.groupby("test_cohort", sort=False):
        if rows[TEST_SET].nunique() < 2:
            continue
        files = {number: set_files(own) for number, own in rows.groupby(TEST_SET)}
        sources = rows.reindex(columns=[SOURCE])[SOURCE].dropna().unique()
        differing = _differing([_settings(Path(source)) for source in sources])
        why = f"of their settings these differ: {', '.join(differing)}"
        if not differing:
            why = "their images or annotations themselves differ, or one does not say which it has"
        notes.append(
            f"{cohort}: tested on different images by {' and by '.join(files.values())}, so each "
            f"has tables of its own; {why}."
        )
    unknown = done[done.reindex(columns=[TESTED])[TESTED].isna()]
    if unknown.reindex(columns=[SOURCE])[SOURCE].nunique() > 1:
        notes.append(
            "Files of older versions do not name their test images: those with as many exams are "
            "taken for tested on the same ones; `sonosweep report` writes them anew."
        )
    return notes


def _settings(results_csv: Path) -> dict[str, Any]:
    """What chooses the test images, from the recipe beside a file; empty where none can be read."""
    try:
        recipe = yaml.safe_load((results_csv.parent / "config.yaml").read_text())
        return dict(_flat({name: recipe[name] for name in ("data", "split")}))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return {}


def _flat(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    nested = [
        _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
        for name, value in node.items()
    ]
    return list(itertools.chain(*nested))


def _differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """`key: one or other` of each setting that is not the same in all that are known."""
    known = [each for each in found if each]
    said = []
    for key in dict.fromkeys(itertools.chain(*known)):
        values = list(dict.fromkeys(str(each.get(key)) for each in known))
        if len(values) > 1:
            said.append(f"{key} ({' or '.join(values)})")
    return said
