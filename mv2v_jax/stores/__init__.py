"""Vector stores behind one small protocol, each through its own client; one file per store."""
