"""What the user hands over, and whether it can work."""
