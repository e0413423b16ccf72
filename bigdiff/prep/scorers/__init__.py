"""Scores computed from pictures and captions: aesthetics, watermarks, safety, similarity, language, sharpness.

`bigdiff.prep.scorers.loading.load` builds them. Each records what it was computed with, and tests itself before a job:
scores of other weights, or of another preprocessing, look plausible and are wrong.
"""
