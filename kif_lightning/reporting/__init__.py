"""What a run tells: on the console and in its files. Reads results only, never a model."""
