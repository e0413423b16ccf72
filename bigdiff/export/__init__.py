"""A trained run as a pipeline that other software loads."""
