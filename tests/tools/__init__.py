"""Programs for people: hunts, soaks and measurements. None of them is a test."""
