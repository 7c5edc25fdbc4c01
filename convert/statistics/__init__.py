"""What is gathered of a layer's inputs: one layer, a whole pass, and a file to keep it in."""
