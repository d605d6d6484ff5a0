"""What the TensorFlow twin is timed against: stock layers, and bare products."""
