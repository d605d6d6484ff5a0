"""The twin in TensorFlow: a language model from tensor operations, mirrored in pt_impl."""
