"""Files to tensors: safetensors, and what PyTorch wrote, read without executing anything."""
