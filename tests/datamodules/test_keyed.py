"""Seeds of the training order, the views and the pairs: those of finished runs stay."""

import numpy as np
import pytest

from datamodules.frames import view_of
from datamodules.keyed import text_seed
from datamodules.stream import TrainingStream


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (("warp", 7, 12), 5068290448620251772),
        (("phantom", 7, 12), 9227264983038690135),
        (("augment", 7, 12), 8598979445954778498),
        (("order", 7, 1, 12), 16190595484444809550),
    ],
)
def test_seeds_are_those_of_finished_runs(key, expected):
    assert text_seed(*key) == expected
    assert text_seed(*key[:-1], np.int64(key[-1])) == expected


def test_order_and_views_are_those_of_finished_runs():
    stream = TrainingStream(
        n_real=1,
        n_synthetic=8,
        batch_size=8,
        n_batches=13,
        synthetic_share=1.0,
        seed=7,
        first_batch=12,
    )
    assert [item - 1 for item, _ in stream] == [2, 4, 6, 7, 5, 3, 1, 0]
    assert view_of(12, seed=7, n_views=1000) == 420
