"""The `export` room."""
