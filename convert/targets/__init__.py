"""What goes out, one folder a target."""
