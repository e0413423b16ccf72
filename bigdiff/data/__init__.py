"""From plain WebDataset tars to batches: manifest, offset index, order and reading. No model, no DeepSpeed."""
