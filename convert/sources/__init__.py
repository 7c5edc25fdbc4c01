"""What goes in: Hugging Face folders, and texts to calibrate and measure on."""
