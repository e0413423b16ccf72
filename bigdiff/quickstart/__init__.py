"""The embedded dataset: drawn scenes, their judge, and the tiny autoencoder that fits them."""
