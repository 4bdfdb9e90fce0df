"""`backfire judge-audit`: judges against people, against each other, and under suffixes."""
