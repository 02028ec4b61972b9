"""CLIP: pictures and texts in one space. Only here open_clip and timm are imported, and never before they are used."""
