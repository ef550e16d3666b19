"""Embeddings in a column of a table, read in batches together with ids and texts."""
