"""Pictures of the sets behind a report."""

from dataclasses import replace

import numpy as np

from datamodules.annotation import image_of
from datamodules.samples import read_hc18
from experiments.results.report_synthesis import outlined


def test_an_image_without_an_annotation_is_shown_without_an_outline(hc18_folder):
    sample = read_hc18(hc18_folder)[0]
    with_outline, bare = outlined(sample), outlined(replace(sample, annotation_path=None))
    grey = np.repeat(image_of(sample)[..., None], 3, axis=2)
    np.testing.assert_array_equal(bare.image, grey)
    assert (with_outline.image != grey).any()
    assert bare.caption == sample.sample_id
