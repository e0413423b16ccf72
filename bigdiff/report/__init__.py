"""One page about a run, for somebody without its folder or TensorBoard. No torch."""
