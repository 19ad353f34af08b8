"""Concepts: what a network has learned from a few pictures, beside the weights it belongs to."""
