"""The bytes that both sides are handed: corpora, weights, random draws."""
