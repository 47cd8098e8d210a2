"""For operators: pages, metrics and the routes of the cluster."""
