"""One table per network: the names of its parameters in other layouts, read both ways."""
