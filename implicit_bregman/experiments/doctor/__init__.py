"""The command `doctor`: what is installed, and whether it computes the right numbers here."""
