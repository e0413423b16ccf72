"""Networks that other folders test with, too."""

from networks import tiny_clip as tiny_clip
