"""The networks: built from a stage's configuration or loaded, frozen, from a local folder or the hub."""
