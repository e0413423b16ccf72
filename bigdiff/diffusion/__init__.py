"""The maths of diffusion training: schedule and objective. Torch only."""
