"""PyTorch's own files (.bin, .pth), read without its unpickler."""
