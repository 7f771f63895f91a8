"""What can be made besides random images; each mode is a plan, a starting canvas and a set of allowed bank images."""
