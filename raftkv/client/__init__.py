"""Python client library; imports no server code."""
