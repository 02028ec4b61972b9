"""Judging reliability: ground truth, matching, metrics with intervals over images, synthetic conditions."""
