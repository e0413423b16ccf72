"""What a stage will need, before anything runs."""
