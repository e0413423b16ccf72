"""The networks: built from config or loaded from a local path or hub id; frozen encoders; EMA."""
