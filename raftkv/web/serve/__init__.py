"""What carries requests: the async lane, Flask views, bodies, admission, access to the engine."""
