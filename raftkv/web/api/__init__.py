"""The API as pure functions: routes, parsing, rendering, problems, access and its document."""
