"""What the ellipse extractor accepts. All shares, so that it holds at every image size."""

from dataclasses import dataclass

from datamodules.allowed import above, between


@dataclass(kw_only=True)
class ExtractorConfig:
    """When a drawn outline is taken for a head's ellipse, and when it is refused."""

    threshold: int = 180
    """Grey values above it are the line; 180 is the paper's."""
    max_residual_share: float = 0.01
    """Largest residual over the ellipse's mean radius: 1.5 px at 150 px."""
    min_closedness: float = 0.75
    """Smallest share of the visible ellipse that the line covers."""
    min_visible_share: float = 0.7
    """Smallest share of the ellipse that lies inside the image."""
    min_semi_minor_share: float = 0.08
    """Smallest shorter semi-axis over the image's shorter side; HC18's are 0.11 to 0.46."""
    max_semi_major_share: float = 0.6
    """Largest longer semi-axis over the image's longer side; HC18's are 0.12 to 0.47."""
    max_thickness_share: float = 0.05
    """Largest thickness of the line over the image's shorter side; beyond it, it is a region."""
    max_foreground_share: float = 0.15
    """Largest share of the image above the threshold; HC18's outlines cover about 0.01."""

    def __post_init__(self) -> None:
        between(0, 254).check(self, "threshold", section="extractor")
        above(0, at_most=1).check(
            self,
            "max_residual_share",
            "min_closedness",
            "min_visible_share",
            "min_semi_minor_share",
            "max_thickness_share",
            "max_foreground_share",
            section="extractor",
        )
        # Half a long ellipse may lie outside the image.
        above(0, at_most=2).check(self, "max_semi_major_share", section="extractor")
        if self.min_semi_minor_share >= self.max_semi_major_share:
            raise ValueError(
                f"extractor.min_semi_minor_share={self.min_semi_minor_share}: use less than "
                f"max_semi_major_share={self.max_semi_major_share}"
            )
