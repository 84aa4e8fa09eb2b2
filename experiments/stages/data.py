"""From `data.root` to what a plan needs: samples, index, subset, split. Torch-free."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path

from datamodules.annotation import image_of
from datamodules.cohort import read_cohort
from datamodules.config import DataConfig
from datamodules.errors import InputError
from datamodules.index import Index, IndexRow, build_index, cross_cohort_duplicates
from datamodules.layouts import LAYOUTS
from datamodules.notices import notices
from datamodules.plausible import doubts
from datamodules.reading import bias_notes, reads_as, settled, settled_samples
from datamodules.samples import Sample, content_hash_of, hash_as_read, trimester
from datamodules.split_file import folds_from_file, read_split_file, split_from_file
from datamodules.splits import Split, Unit, choose_subset, make_folds, make_split
from datamodules.storage import content_key, write_atomic, write_json
from datamodules.synthetic import pixels_sha256, read_synthetic, seen_pixels
from datamodules.unchanged import require_unchanged
from experiments.config.schema import ExperimentConfig
from experiments.plan.nodes import DataView

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Data(DataView):
    """All that a sweep knows of its images."""

    samples: dict[str, Sample]
    rows: dict[str, IndexRow]
    indices: dict[str, Index]
    """Index by cohort."""
    notes: tuple[str, ...] = ()
    """What the user should know of how annotations are read."""
    unlabelled: dict[str, Sample] = field(default_factory=dict)
    """Images that have no annotation, by an id of their own; `rows` and `content` have them too."""
    new_indices: dict[Path, Index] = field(default_factory=dict)
    """What was indexed anew, by the place that `keep_indices` gives it."""


def load_data(config: ExperimentConfig, *, progress: Progress | None = None) -> Data:
    """Read, check, index and split the data of a sweep; InputError for anything wrong with them.

    The structure is checked before any image is decoded, and nothing is written. What
    `keep_indices` has kept of the same files is not decoded again.
    """
    cohorts = _cohorts(config)
    name = next(iter(cohorts))
    as_listed = _by_id(cohorts)
    cohorts = _as_said(cohorts, config.data)
    samples = _by_id(cohorts)
    pairs = _foreign_pairs(config, taken=samples)
    files, foreign = _hashes(samples.values()), _hashes(pairs)
    folder = Path(config.store.root) / "store" / "index"
    new: dict[Path, Index] = {}
    index_of = partial(_index, folder=folder, new=new, progress=progress)
    indices = {cohort: index_of(members, content=files) for cohort, members in cohorts.items()}
    notes: list[str] = []
    if config.data.filled_bias_px is None:
        indices[name], notes = settled(indices[name], filled_bias_px=None)
        cohorts[name] = settled_samples(cohorts[name], indices[name])
        samples = _by_id(cohorts)
    for cohort, index in indices.items():
        doubted = [each for each in bias_notes(index)[1:] if each not in notes]
        notes += [f"{cohort}: {each}" for each in (*notices(index), *doubted)]
    content = _contents(files, samples=samples, as_listed=as_listed)
    if not config.data.allow_implausible:
        roots = [config.data_root(), *(folder for _, folder in config.data.cohorts())]
        _refuse_implausible(indices.values(), roots=roots)
    _refuse_turned_pairs(config, indices[name])
    units = {row.sample_id: _unit(row, group_id=row.group_id) for row in indices[name].rows}
    folds = _folds(list(units.values()), config, samples=samples)
    _refuse_shared_images(indices, name=name, folds=folds)
    if pairs:
        tested = {sample_id for fold in folds for sample_id in fold.test}
        _refuse_tested_pairs(index_of(pairs, content=foreign), indices, name=name, tested=tested)
        _refuse_seen_images(
            Path(config.synthesis.folder),
            [s for key, s in samples.items() if key in tested or key not in units],
        )
    extra, extra_rows = _unlabelled(config, index_of=index_of, indices=indices)
    content |= _hashes(extra)
    references = {
        key: content_key([content[key], s.pixel_size_mm, s.hc_mm, s.filled_bias_px])
        for key, s in samples.items()
    }
    rows = [*(row for index in indices.values() for row in index.rows), *extra_rows]
    return Data(
        name=name,
        units=units,
        content=content,
        references=references,
        folds=folds,
        cohorts={
            cohort: [sample.sample_id for sample in members]
            for cohort, members in cohorts.items()
            if cohort != name
        },
        foreign_pairs=foreign or None,
        samples=samples,
        unlabelled={sample.sample_id: sample for sample in extra},
        rows={row.sample_id: row for row in rows},
        indices=indices,
        notes=tuple(notes),
        new_indices=new,
    )


def keep_indices(data: Data) -> None:
    """Keep what was indexed anew in the store, each index under the hash of its files."""
    for path, index in data.new_indices.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, index.to_json())


def _unlabelled(
    config: ExperimentConfig,
    *,
    index_of: Callable[..., Index],
    indices: Mapping[str, Index],
) -> tuple[list[Sample], Sequence[IndexRow]]:
    """The layout's images without annotations, where they are asked for, less near-copies of
    annotated ones: of those one may be tested on."""
    if not config.data.use_unlabelled:
        return [], ()
    root = config.data_root()
    # HC18's two parts use the same names, of images and of exams.
    found = [
        replace(
            each,
            sample_id=f"unlabelled-{each.sample_id}",
            exam_id=f"unlabelled-{each.exam_id}",
            cohort=f"{each.cohort}-unlabelled",
        )
        for each in LAYOUTS[config.data.layout].unlabelled(root)
    ]
    if not found:
        raise InputError(
            f"data.use_unlabelled: {root} holds no image without an annotation; put HC18's "
            "test_set/ and its CSV there, or leave the setting out"
        )
    index = index_of(found, content=_hashes(found))
    copies = {
        copy.sample_ids[0]
        for annotated in indices.values()
        for copy in cross_cohort_duplicates({"unlabelled": index, "annotated": annotated})
    }
    return [each for each in found if each.sample_id not in copies], index.rows


def _cohorts(config: ExperimentConfig) -> dict[str, list[Sample]]:
    """Samples by cohort as their folders list them, the main data first."""
    main, subset = LAYOUTS[config.data.layout].read(config.data_root()), config.data.subset
    units = [_unit(sample, group_id=sample.exam_id) for sample in main]
    keep = set(choose_subset(units, name=subset.name, n_images=subset.n_images))
    cohorts = {main[0].cohort: [sample for sample in main if sample.sample_id in keep]}
    for called, folder in config.data.cohorts():
        members = read_cohort(folder, name=called)
        cohort = members[0].cohort
        if cohort in cohorts:
            raise InputError(
                f"data.test_cohorts: two cohorts are named {cohort}; rename {folder}, "
                f"or call it NAME={folder}"
            )
        cohorts[cohort] = members
    return cohorts


def _as_said(cohorts: Mapping[str, list[Sample]], data: DataConfig) -> dict[str, list[Sample]]:
    """The samples with what the settings say of the annotations of each cohort."""
    name = next(iter(cohorts))
    labels, biases_px = data.cohort_labels, data.cohort_filled_bias_px
    for setting, given in (("cohort_labels", labels), ("cohort_filled_bias_px", biases_px)):
        if other := sorted(given.keys() - (cohorts.keys() - {name})):
            known = ", ".join(sorted(cohorts.keys() - {name})) or "none"
            raise InputError(
                f"data.{setting}: no test cohort is called {other[0]}; those of data.test_cohorts: "
                f"{known}"
            )
    own = {name: (data.label, data.filled_bias_px)}
    said = own | {each: (labels.get(each), biases_px.get(each)) for each in cohorts if each != name}
    return {
        cohort: reads_as(members, label=said[cohort][0], filled_bias_px=said[cohort][1])
        for cohort, members in cohorts.items()
    }


def _by_id(cohorts: Mapping[str, Sequence[Sample]]) -> dict[str, Sample]:
    """All samples; InputError where two have one name."""
    samples: dict[str, Sample] = {}
    for cohort, members in cohorts.items():
        for sample in members:
            if sample.sample_id in samples:
                raise InputError(
                    f"data.test_cohorts: {cohort} holds an image named {sample.sample_id}, as "
                    f"{samples[sample.sample_id].cohort} does; rename one"
                )
            samples[sample.sample_id] = sample
    return samples


def _contents(
    files: Mapping[str, str],
    *,
    samples: Mapping[str, Sample],
    as_listed: Mapping[str, Sample],
) -> dict[str, str]:
    """Hashes of what is read: of the files, and of how where that is not what is expected.

    The same file gives other masks then, and whatever is fitted on them has another id.
    """
    return {
        key: files[key] if sample == as_listed[key] else hash_as_read(files[key], sample)
        for key, sample in samples.items()
    }


def _index(
    samples: Sequence[Sample],
    *,
    content: Mapping[str, str],
    folder: Path,
    new: dict[Path, Index],
    progress: Progress | None,
) -> Index:
    """The index of the samples, from the store where the same files were indexed before; else it is
    added to `new`."""
    names = ("exam_id", "frame", "pixel_size_mm", "hc_mm", "cohort", "filled_bias_px")
    facts = attrgetter("sample_id", *names)
    # No label is not named, so that what was indexed before is found.
    keys = [
        [*facts(s), content[s.sample_id], *([] if s.label is None else [s.label])] for s in samples
    ]
    path = folder / f"{content_key(keys)}.json"
    if path.is_file():
        # One of another version is built again.
        with contextlib.suppress(ValueError):
            return Index.from_json(path.read_text())
    new[path] = build_index(samples, progress=progress)
    require_unchanged(samples, [content[s.sample_id] for s in samples])
    return new[path]


def write_splits(folds: Sequence[Split], path: Path) -> None:
    """Write the lists of ids into a sweep's folder: one split, or under `folds` one a fold."""
    parts = [{"train": fold.train, "val": fold.val, "test": fold.test} for fold in folds]
    write_json(path, parts[0] if len(parts) == 1 else {"folds": parts})


def _hashes(samples: Iterable[Sample]) -> dict[str, str]:
    return {s.sample_id: content_hash_of(s) for s in samples}


def _foreign_pairs(config: ExperimentConfig, *, taken: Mapping[str, Sample]) -> list[Sample]:
    """The pairs in `synthesis.folder`; none without a folder."""
    if config.synthesis.folder is None:
        return []
    pairs = read_synthetic(Path(config.synthesis.folder)).samples
    for pair in pairs:
        if pair.sample_id in taken:
            raise InputError(
                f"synthesis.folder: {pair.image_path} has the name of a real image; rename the pair"
            )
    return pairs


def _refuse_implausible(indices: Iterable[Index], *, roots: Sequence[Path]) -> None:
    """Wrong lengths make every number in mm wrong, and nothing later would show it."""
    for index, root in zip(indices, roots, strict=True):
        found = doubts(index)
        if found:
            more = f" (and {len(found) - 1} more such findings)" if len(found) > 1 else ""
            raise InputError(
                f"{root}: {found[0]}{more}; see sonosweep data index {root}, "
                "correct the data, or go on by data.allow_implausible=true"
            )


def _refuse_turned_pairs(config: ExperimentConfig, index: Index) -> None:
    """Heads of standing images, drawn in lying ones, are cut by the border; and the other way."""
    conditions = [config.condition(name) for _, name in config.arms()]
    has_folder = config.synthesis.folder is not None
    if not any(c.draws_outlines and not (c.source.is_generated and has_folder) for c in conditions):
        return
    height, width = config.synthesis.image_hw
    sizes = [row.size_hw for row in index.rows]
    # A square neither lies nor stands.
    turned = [(h, w) for h, w in sizes if (h - w) * (height - width) < 0]
    if 2 * len(turned) > len(index.rows):
        lies = width > height
        raise InputError(
            f"synthesis.image_hw=[{height},{width}] {'lies' if lies else 'stands upright'}, but "
            f"{len(turned)} of {len(index.rows)} images {'stand upright' if lies else 'lie'} (the "
            f"first: {turned[0][1]}x{turned[0][0]} px), so that drawn heads would be cut by the "
            f"border; set synthesis.image_hw=[{width},{height}]"
        )


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


def _refuse_seen_images(folder: Path, tested: Sequence[Sample]) -> None:
    """Pairs must not come from a generator that has seen what is tested on."""
    seen = seen_pixels(folder)
    found = [s.sample_id for s in tested if seen and pixels_sha256(image_of(s)) in seen]
    if found:
        raise InputError(
            f"synthesis.folder: the generator of {folder} was fitted on {len(found)} of "
            f"{len(tested)} test images ({found[0]} for one); draw from a generator that was "
            "fitted without them"
        )


def _folds(
    units: list[Unit], config: ExperimentConfig, *, samples: Mapping[str, Sample]
) -> tuple[Split, ...]:
    split = config.split
    if split.file is not None:
        path = Path(split.file)
        read_split_file(path).check_against(list(samples.values()))
        if split.n_folds == 1:
            return (split_from_file(path, units),)
        return folds_from_file(path, units, n_folds=split.n_folds)
    return (make_split(units, split),) if split.n_folds == 1 else tuple(make_folds(units, split))


def _unit(found: Sample | IndexRow, *, group_id: str) -> Unit:
    return Unit(
        sample_id=found.sample_id,
        group_id=group_id,
        exam_id=found.exam_id,
        frame=found.frame,
        stratum=trimester(found.hc_mm) or 0,
        pixel_size_mm=found.pixel_size_mm,
        hc_mm=found.hc_mm,
        fingerprint=found.fingerprint if isinstance(found, IndexRow) else "",
    )
