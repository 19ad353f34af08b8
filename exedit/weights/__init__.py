"""Names to names: how other layouts spell our tensors, one table per network, read both ways."""
