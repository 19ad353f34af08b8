"""Edits: lists and checks, the work before and after the network, batches, recipes."""
