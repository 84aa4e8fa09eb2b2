"""What a user's test of the segmenter is; test_extending.py runs it too."""

import torch

from my_rooms.one_layer import OneLayerConfig
from my_rooms.one_layer_module import OneLayer


def test_one_layer_learns_a_bright_head_and_is_kept(tmp_path):
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 32, 48)
    mask[..., 8:24, 12:36] = 1
    size_hw = torch.tensor([[32, 48]] * 2)
    batch = {"image": 0.2 + 0.6 * mask, "mask": mask, "valid_hw": size_hw}
    module = OneLayer.start(OneLayerConfig(), seed=0, cached=False, captures=False)
    optimizer = module.configure_optimizers()
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(batch).backward()
        optimizer.step()
    found = module.predict(batch)
    assert ((found > 0) == mask.bool()).float().mean() > 0.97
    module.save(tmp_path / "weights")
    loaded = OneLayer.load(tmp_path / "weights", module.config)
    assert torch.equal(loaded.predict(batch), found)
