"""How a segmenter is told where to look, in training and in scores. Torch-free."""

from typing import Literal

PromptProtocol = Literal["tight_box", "jittered_box", "whole_image"]
