"""Speed of the decoder against what one would write without it, as ratios measured in one run."""
