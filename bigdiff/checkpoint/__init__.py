"""A run's saved states: what they hold, where they lie, and how they are written whole and read back."""
