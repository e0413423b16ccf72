"""Networks that other folders test with, too."""

from networks import random_inception as random_inception
from networks import tiny_clip as tiny_clip
