"""evaluate/judges."""
