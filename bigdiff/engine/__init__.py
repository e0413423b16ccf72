"""DeepSpeed and the optimizer: the only place that knows how weights are partitioned."""
