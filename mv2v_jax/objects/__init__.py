"""What other libraries hold vectors in, turned into NumPy arrays: Arrow columns, tensors, series, lists."""
