"""What `tools/train_demo_detector.py` is made of: scenes, the pretrained trunk, average precision, the card."""
