"""Moving a collection: the driver, the file that keeps its progress, and the comparison at the end."""
