"""Networks: arrays in, arrays out; no schedule, no config, no files."""
