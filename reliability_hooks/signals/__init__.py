"""Signals: what one family of evidence says about each instance. Add one: write it, list it in `base.FAMILIES`."""
