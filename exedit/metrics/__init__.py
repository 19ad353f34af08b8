"""Numbers about results: arrays in, numbers out; no files, no networks."""
