"""The twin in PyTorch: a language model from tensor operations, mirrored in tf_impl."""
