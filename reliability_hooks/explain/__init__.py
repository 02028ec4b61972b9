"""Which pixels the class, the box, the mask or the doubt of each object rests on."""
