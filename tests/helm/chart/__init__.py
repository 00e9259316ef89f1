"""What the chart renders, without a cluster."""
