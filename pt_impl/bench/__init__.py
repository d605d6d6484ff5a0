"""What the PyTorch twin is timed against: stock layers, bare products, PyTorch's comparison."""
