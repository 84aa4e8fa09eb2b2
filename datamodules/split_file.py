"""Published splits: a named, hashed file of sample ids, so that others' numbers are comparable."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.samples import Sample
from datamodules.splits import Split, Unit
from datamodules.storage import file_sha256, write_json

FORMAT = "sonosweep-split-1"
PARTS = ("train", "val", "test")
_KEYS = {"format", "name", "version", "sha256", "dataset", *PARTS}


@dataclass(frozen=True, kw_only=True)
class DatasetHash:
    """The images that a split names."""

    cohort: str
    """Name of the data set."""
    n_images: int
    """Images that the split names; what else the folder holds does not count."""
    sha256: str
    """Hash over the ids and the image files' bytes, in the order of the ids."""


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """A published split, as read from its file."""

    name: str
    version: str
    sha256: str
    """Hash over everything else in the file."""
    dataset: DatasetHash
    split: Split
    """The parts; of a cross-test, those of its first fold."""
    folds: tuple[Split, ...]
    """The folds of a cross-test; empty where there are none."""

    @property
    def sample_ids(self) -> list[str]:
        """Every image that the file names, in order."""
        return _named(self.split, folds=self.folds)

    @property
    def test_ids(self) -> tuple[str, ...]:
        """The images that are tested: of a cross-test, those of every fold."""
        tested = [fold.test for fold in self.folds] or [self.split.test]
        return tuple(sample_id for each in tested for sample_id in each)

    def check_against(self, samples: Sequence[Sample]) -> None:
        """Refuse data that are not those of the split; more images than it names do no harm.

        Raises:
            InputError: An image is missing, or the files' bytes are others.
        """
        label = f"split {self.name} {self.version}"
        held = {sample.sample_id: sample for sample in samples}
        _refuse_unknown(self.sample_ids, known=held, label=label)
        found = dataset_hash(self.sample_ids, samples=samples)
        if found.sha256 != self.dataset.sha256:
            raise InputError(
                f"{label}: the {found.n_images} images it names are not the files it was made of "
                f"(hash {found.sha256[:12]}, not {self.dataset.sha256[:12]}); use the published "
                "image files as they are"
            )


def dataset_hash(sample_ids: Sequence[str], *, samples: Sequence[Sample]) -> DatasetHash:
    """Hash the named images; annotations do not count, since they are passed on in two forms.

    Args:
        sample_ids: At least one id of `samples`.
        samples: Of one cohort, or more.

    Returns:
        The hash, and the cohort of the first image.
    """
    held = {sample.sample_id: sample for sample in samples}
    lines = [[name, file_sha256(held[name].image_path)] for name in sorted(sample_ids)]
    return DatasetHash(
        cohort=held[sample_ids[0]].cohort, n_images=len(lines), sha256=_canonical_sha256(lines)
    )


def write_split_file(
    path: Path,
    *,
    name: str,
    version: str,
    split: Split,
    samples: Sequence[Sample],
    folds: Sequence[Split] = (),
) -> SplitFile:
    """Publish a split; a file that says something else is never overwritten.

    Args:
        path: JSON file to write.
        name: Of the split, one line.
        version: Of the split, one line.
        split: Ids of the three parts.
        samples: Every image that the parts name, and possibly more.
        folds: The folds of a cross-test, where it is one.

    Returns:
        What `read_split_file` reads from the file.

    Raises:
        InputError: A bad name, an image twice, or the file exists and differs.
    """
    for what, text in (("name", name), ("version", version)):
        if not text.strip() or len(text.splitlines()) > 1:
            raise InputError(f"split {what} {text!r}: give one line that is not empty")
    content: dict[str, Any] = {"format": FORMAT, "name": name, "version": version}
    named = _named(split, folds=folds)
    dataset = dataset_hash(named, samples=samples)
    content["dataset"] = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    content |= _listed(split)
    if folds:
        content["folds"] = [_listed(fold) for fold in folds]
    content["sha256"] = _canonical_sha256(content)
    made = _parse(content, label=str(path))
    if path.exists():
        if read_split_file(path) == made:
            return made
        raise InputError(
            f"{path}: exists and says something else; a published split stays as it is, so choose "
            "another file and a new version"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder; make it, or choose another file")
    write_json(path, content)
    return made


def read_split_file(path: Path) -> SplitFile:
    """Read a published split and verify its hash.

    Raises:
        InputError: Unreadable, of another form, edited, or an image in two places.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: not a split file ({error}); download it again") from error
    return _parse(content, label=str(path))


def split_from_file(path: Path, units: Sequence[Unit]) -> Split:
    """Take the split of a published file for the data at hand.

    The images' bytes are not looked at here: `SplitFile.check_against` does that.

    Args:
        path: JSON file from `write_split_file`.
        units: Images at hand; those that the file does not name are left out.

    Raises:
        InputError: As `read_split_file`; or a part is empty, an image is not in the data, or two
            parts share an exam group.
    """
    published = read_split_file(path)
    _refuse_leaks([published.split], published=published, units=units, label=str(path))
    return published.split


def folds_from_file(path: Path, units: Sequence[Unit], *, n_folds: int) -> tuple[Split, ...]:
    """Take the folds of a published file for the data at hand.

    Args:
        path: JSON file from `write_split_file`.
        units: Images at hand; those that the file does not name are left out.
        n_folds: How many folds are expected.

    Raises:
        InputError: As `split_from_file`, of any fold; or the file holds another number of folds.
    """
    published = read_split_file(path)
    if len(published.folds) != n_folds:
        held = f"{len(published.folds)} folds" if published.folds else "a single split"
        raise InputError(
            f"split.n_folds={n_folds}: {path} holds {held}; set split.n_folds="
            f"{max(1, len(published.folds))} or publish another file"
        )
    _refuse_leaks(published.folds, published=published, units=units, label=str(path))
    return published.folds


def _refuse_leaks(
    splits: Sequence[Split], *, published: SplitFile, units: Sequence[Unit], label: str
) -> None:
    """Refuse an empty part, and parts of one split that share an exam group."""
    by_id = {unit.sample_id: unit for unit in units}
    _refuse_unknown(published.sample_ids, known=by_id, label=label)
    for split in splits:
        part_of_group: dict[str, tuple[str, str]] = {}
        for part in PARTS:
            ids = getattr(split, part)
            if not ids:
                raise InputError(
                    f"{label}: the {part} part is empty; a sweep needs all three parts"
                )
            for sample_id in ids:
                group_id = by_id[sample_id].group_id
                other, first = part_of_group.setdefault(group_id, (part, sample_id))
                if other != part:
                    raise InputError(
                        f"{label}: {first} ({other}) and {sample_id} ({part}) show one exam or "
                        "nearly the same image; a split that leaks is refused, so publish a "
                        "corrected one"
                    )


def _parse(content: Any, *, label: str) -> SplitFile:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise InputError(f"{label}: not a split file of format {FORMAT}; download it again")
    expected = _canonical_sha256({key: content[key] for key in content if key != "sha256"})
    if content.get("sha256") != expected:
        raise InputError(
            f"{label}: its content has the hash {expected[:12]}, not the one it states; it was "
            "edited, so download it again or publish it under a new version"
        )
    try:
        if content.keys() - {"folds"} != _KEYS:
            raise ValueError(f"keys {sorted(content)}")
        split = _split(content)
        folds = tuple(_fold(fold) for fold in content.get("folds", ()))
        dataset = DatasetHash(**content["dataset"])
        name, version = str(content["name"]), str(content["version"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{label}: not a split file ({error}); download it again") from error
    groups = [("parts", [getattr(each, part) for part in PARTS]) for each in (split, *folds)]
    for what, lists in [*groups, ("folds' test parts", [fold.test for fold in folds])]:
        named = [sample_id for each in lists for sample_id in each]
        if len(set(named)) < len(named):
            twice = min(sample_id for sample_id in named if named.count(sample_id) > 1)
            raise InputError(f"{label}: {twice} is named twice in its {what}; publish it corrected")
    if folds and folds[0] != split:
        raise InputError(
            f"{label}: its parts are not those of its first fold; publish it corrected"
        )
    return SplitFile(
        name=name,
        version=version,
        sha256=expected,
        dataset=dataset,
        split=split,
        folds=folds,
    )


def _listed(split: Split) -> dict[str, list[str]]:
    return {part: list(getattr(split, part)) for part in PARTS}


def _split(content: Mapping[str, Any]) -> Split:
    return Split(**{part: _ids(content[part]) for part in PARTS})


def _fold(content: Any) -> Split:
    if not isinstance(content, Mapping) or set(content) != set(PARTS):
        raise ValueError(f"a fold is an object of {', '.join(PARTS)}")
    return _split(content)


def _ids(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("a part is a list of sample ids")
    return tuple(values)


def _named(split: Split, *, folds: Sequence[Split]) -> list[str]:
    lists = [getattr(each, part) for each in (split, *folds) for part in PARTS]
    return sorted({sample_id for each in lists for sample_id in each})


def _refuse_unknown(sample_ids: Sequence[str], *, known: Mapping[str, Any], label: str) -> None:
    unknown = [sample_id for sample_id in sample_ids if sample_id not in known]
    if unknown:
        raise InputError(
            f"{label}: {len(unknown)} of the {len(sample_ids)} images it names are not in the data "
            f"({', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); use the data set "
            "it was made of, whole"
        )


def _canonical_sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
