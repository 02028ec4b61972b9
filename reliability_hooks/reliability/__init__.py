"""Signal columns to a calibrated probability of being correct and an expected IoU."""
