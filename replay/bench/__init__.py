"""Benchmarks: what Hourglass promises of its speed, measured beside a yardstick in the same run.

One module for each bench, with `run(progress) -> Result`. What is measured and its yardstick take turns (A B A B …), so
that a neighbour who takes half of the machine takes it from both; a ratio is the median of the turns' ratios.
"""
