"""LocalCluster and pytest fixtures, for our own tests and for users'."""
