"""What will lie on a device, before anything is loaded."""
