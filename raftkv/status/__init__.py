"""What operators are shown, worked out of facts that others gather: health, histograms."""
