"""Programs to start from: each does one job that people have, on real texts and embeddings, and prints how it went."""
