"""Weights of every layout: found, checked, translated and written."""
