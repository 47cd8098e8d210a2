"""Histories of what clients saw, and the judge of whether one correct object explains them."""
