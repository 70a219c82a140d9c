"""What stands behind the command line's verbs: each takes parsed arguments and a terminal, and returns nothing."""
