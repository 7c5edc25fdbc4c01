"""Files of every kind that a conversion reads or makes: opened once, checked, staged until they are complete."""
