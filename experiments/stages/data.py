"""From `data.root` to what a plan needs: samples, index, subset, split. Torch-free."""

import contextlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError
from datamodules.index import Index, IndexRow, build_index, cross_cohort_duplicates
from datamodules.layouts import LAYOUTS
from datamodules.samples import Sample, read_cohort, trimester
from datamodules.split_file import folds_from_file, read_split_file, split_from_file
from datamodules.splits import Split, Unit, choose_subset, make_folds, make_split
from datamodules.storage import content_key, files_sha256, write_atomic, write_json
from datamodules.synthetic import read_synthetic
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import DataView

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Data:
    """All that a sweep knows of its images."""

    name: str
    """Cohort of the main data."""
    samples: dict[str, Sample]
    rows: dict[str, IndexRow]
    view: DataView
    indices: dict[str, Index]
    """Index by cohort."""


def load_data(config: ExperimentConfig, *, progress: Progress | None = None) -> Data:
    """Read, check, index and split the data of a sweep; InputError for anything wrong with them.

    The structure is checked before any image is decoded. An index is kept in the store under the
    hash of its files, so unchanged files are not decoded again.
    """
    root = config.data_root()
    main = LAYOUTS[config.data.layout].read(root)
    chosen = choose_subset(
        [_unit(sample, group_id=sample.exam_id) for sample in main],
        name=config.data.subset.name,
        n_images=config.data.subset.n_images,
    )
    keep = set(chosen)
    cohorts = {main[0].cohort: [sample for sample in main if sample.sample_id in keep]}
    name = main[0].cohort
    for folder in config.data.test_cohorts:
        samples = read_cohort(Path(folder))
        if samples[0].cohort in cohorts:
            raise InputError(
                f"data.test_cohorts: two cohorts are named {samples[0].cohort}; rename {folder}"
            )
        cohorts[samples[0].cohort] = samples
    samples: dict[str, Sample] = {}
    for cohort, members in cohorts.items():
        for sample in members:
            if sample.sample_id in samples:
                raise InputError(
                    f"data.test_cohorts: {cohort} holds an image named {sample.sample_id}, as "
                    f"{samples[sample.sample_id].cohort} does; rename one"
                )
            samples[sample.sample_id] = sample
    foreign, foreign_index = _foreign_pairs(config, taken=samples, progress=progress)
    content = {
        sample_id: files_sha256(sample.image_path, sample.annotation_path)
        for sample_id, sample in samples.items()
    }
    indices = {
        cohort: cached_index(
            members, content=content, folder=Path(config.store.root), progress=progress
        )
        for cohort, members in cohorts.items()
    }
    rows = {row.sample_id: row for index in indices.values() for row in index.rows}
    units = {row.sample_id: _unit(row, group_id=row.group_id) for row in indices[name].rows}
    folds = _folds(list(units.values()), config, samples=samples)
    _refuse_shared_images(indices, name=name, folds=folds)
    if foreign_index is not None:
        tested = {sample_id for fold in folds for sample_id in fold.test}
        _refuse_tested_pairs(foreign_index, indices, name=name, tested=tested)
    return Data(
        name=name,
        samples=samples,
        rows=rows,
        indices=indices,
        view=DataView(
            name=name,
            units=units,
            content=content,
            references={
                sample_id: content_key(
                    [content[sample_id], s.pixel_size_mm, s.hc_mm, s.filled_bias_px]
                )
                for sample_id, s in samples.items()
            },
            folds=folds,
            cohorts={
                cohort: [s.sample_id for s in members]
                for cohort, members in cohorts.items()
                if cohort != name
            },
            foreign_pairs=foreign,
        ),
    )


def cached_index(
    samples: Sequence[Sample],
    *,
    content: Mapping[str, str],
    folder: Path,
    progress: Progress | None = None,
) -> Index:
    """The index of the samples, from the store where the same files were indexed before."""
    key = content_key(
        [
            [
                s.sample_id,
                s.exam_id,
                s.frame,
                s.pixel_size_mm,
                s.hc_mm,
                s.cohort,
                s.filled_bias_px,
                content[s.sample_id],
            ]
            for s in samples
        ]
    )
    path = folder / "store" / "index" / f"{key}.json"
    if path.is_file():
        # One of another version is built again.
        with contextlib.suppress(ValueError):
            return Index.from_json(path.read_text())
    index = build_index(samples, progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, index.to_json())
    return index


def write_splits(folds: Sequence[Split], path: Path) -> None:
    """Write the lists of ids into a sweep's folder: one split, or under `folds` one a fold."""
    parts = [{"train": fold.train, "val": fold.val, "test": fold.test} for fold in folds]
    write_json(path, parts[0] if len(parts) == 1 else {"folds": parts})


def _foreign_pairs(
    config: ExperimentConfig, *, taken: Mapping[str, Sample], progress: Progress | None
) -> tuple[dict[str, str] | None, Index | None]:
    """Content hash of each pair in `synthesis.folder`, and their index; None without a folder."""
    if config.synthesis.folder is None:
        return None, None
    pairs = read_synthetic(Path(config.synthesis.folder)).samples
    for pair in pairs:
        if pair.sample_id in taken:
            raise InputError(
                f"synthesis.folder: {pair.image_path} has the name of a real image; rename the pair"
            )
    content = {s.sample_id: files_sha256(s.image_path, s.annotation_path) for s in pairs}
    folder = Path(config.store.root)
    return content, cached_index(pairs, content=content, folder=folder, progress=progress)


def _refuse_shared_images(
    indices: Mapping[str, Index], *, name: str, folds: Sequence[Split]
) -> None:
    """An external cohort must not test what was trained on under another name."""
    seen = {sample_id for fold in folds for sample_id in (*fold.train, *fold.val)}
    for found in cross_cohort_duplicates(indices):
        pairs = dict(zip(found.cohorts, found.sample_ids, strict=True))
        if pairs.get(name) in seen:
            other = next(cohort for cohort in pairs if cohort != name)
            raise InputError(
                f"data.test_cohorts: {pairs[other]} of {other} is a near-copy of {pairs[name]} of "
                f"{name} (correlation {found.correlation:.3f}), which is trained on; remove it"
            )


def _refuse_tested_pairs(
    pairs: Index, indices: Mapping[str, Index], *, name: str, tested: Set[str]
) -> None:
    """Pairs made elsewhere must not hold what is tested on."""
    for cohort, index in indices.items():
        for found in cross_cohort_duplicates({"pairs": pairs, cohort: index}):
            pair, real = found.sample_ids
            if cohort != name or real in tested:
                raise InputError(
                    f"synthesis.folder: the pair {pair} is a near-copy of the test image {real} of "
                    f"{cohort} (correlation {found.correlation:.3f}); remove it"
                )


def _folds(
    units: list[Unit], config: ExperimentConfig, *, samples: Mapping[str, Sample]
) -> tuple[Split, ...]:
    if config.split.file is not None:
        path = Path(config.split.file)
        read_split_file(path).check_against(list(samples.values()))
        if config.split.n_folds > 1:
            return folds_from_file(path, units, n_folds=config.split.n_folds)
        return (split_from_file(path, units),)
    if config.split.n_folds > 1:
        return tuple(make_folds(units, config.split))
    return (make_split(units, config.split),)


def _unit(found: Sample | IndexRow, *, group_id: str) -> Unit:
    return Unit(
        sample_id=found.sample_id,
        group_id=group_id,
        exam_id=found.exam_id,
        frame=found.frame,
        stratum=trimester(found.hc_mm) or 0,
    )
