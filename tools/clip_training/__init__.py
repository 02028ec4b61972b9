"""What `tools/train_condition_clip.py` is made of: photographs, degradations, captions."""
