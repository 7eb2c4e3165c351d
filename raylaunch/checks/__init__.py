"""Is the plan right, and are the nodes ready for it. Pure: facts and a plan in, findings out."""
