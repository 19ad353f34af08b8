"""Builds shards from a person's own folder of pictures: see `__main__` and docs/own_pictures.md."""
