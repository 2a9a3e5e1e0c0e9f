"""What is measured: accuracy, time, memory, and the figures of the docs."""
