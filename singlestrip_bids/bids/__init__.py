"""The dataset: scans, the label, what is written."""
