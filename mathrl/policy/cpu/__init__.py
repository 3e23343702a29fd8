"""Short cuts of the CPU; nothing on a GPU's path comes here."""
