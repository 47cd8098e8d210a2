"""Front end: pure request and response functions, Flask application, async data lane, pages."""
