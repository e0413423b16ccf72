"""bigdiff: distributed pretraining of Stable Diffusion with streaming data."""

__version__ = "0.1.0"
