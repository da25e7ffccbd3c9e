"""The recipes, one experiment of the paper each: settings, and the evidence for their figures."""
