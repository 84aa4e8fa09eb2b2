"""Prompt protocols of training and evaluation. Torch-free."""

from typing import Literal

PromptProtocol = Literal["tight_box", "jittered_box", "whole_image"]
