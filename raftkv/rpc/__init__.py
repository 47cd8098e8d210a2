"""Messages and framing that the front end and the engine share."""
