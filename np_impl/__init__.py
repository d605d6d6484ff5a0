"""The twin in NumPy: a language model from array operations, its derivatives written by hand."""
