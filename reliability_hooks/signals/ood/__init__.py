"""Out-of-distribution scores. Convention: higher = more out-of-distribution."""
