"""Configurations: one file per job, `get_config(variant)`, some twenty keys each."""
