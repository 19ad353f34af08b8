"""Folders and files as their makers arrange them: ours, diffusers, the original."""
