"""The `report` room."""
