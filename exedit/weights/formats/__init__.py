"""Files to tensors. Nothing in a file is executed."""
